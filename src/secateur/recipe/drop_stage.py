"""The stage that removes whole blocks."""

from dataclasses import dataclass
from typing import Literal

from secateur.recipe.require import require


@dataclass(frozen=True, kw_only=True)
class DropBlocksStage:
    """Remove whole blocks: the `count` of lowest score, or those named in `blocks` (0-based)."""

    stage: Literal["drop_blocks"] = "drop_blocks"
    criterion: Literal["block_influence"] = "block_influence"
    count: int | None = None
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(
            (self.count is None) == bool(self.blocks),
            "drop_blocks needs either `count` or `blocks`, and not both",
        )
        require(
            self.count is None or self.count >= 1,
            f"drop_blocks: expected `count` of at least 1, got {self.count}",
        )
        require(
            len(set(self.blocks)) == len(self.blocks) and all(block >= 0 for block in self.blocks),
            f"drop_blocks: `blocks` must be distinct 0-based indices, got {list(self.blocks)}",
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether blocks are chosen by activations."""
        return not self.blocks
