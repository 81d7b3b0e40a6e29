"""How the packing kernel cuts a weight into tiles."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pack24TritonConfig:
    """A tile a program."""

    rows: int = 16
    """16, 32 or 64: whole sub-tiles of fragment order, within one panel of 64 rows."""
    columns: int = 256
    """A power of two from 64 on. At 256 every row is read in runs of 512 bytes, and a row's
    indices fill a 32-byte sector."""
    num_warps: int = 4

    def __str__(self) -> str:
        return f"tile {self.rows} x {self.columns}, {self.num_warps} warps"
