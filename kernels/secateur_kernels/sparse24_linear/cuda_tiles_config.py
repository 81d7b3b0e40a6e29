"""How the compiled 2:4 kernel for many tokens divides its work on any GPU from sm_80 on.

y is cut into tiles, one at a time for a thread block. `waves` times as many tiles as there are
thread blocks are given out whole; what is left is divided into contiguous ranges of steps of 64
columns, and a tile that several ranges share is summed through a workspace in fixed order. The
formulas are those of `csrc/include/secateur/tile_schedule.h` and `tiles/problem.h`.
"""

from dataclasses import dataclass

from secateur_kernels.sparse24_linear.cuda_needs import Needs, needs_of

MAX_SIZE = 2**30
MAX_STAGES = 8
_UNIT = 64
_UNIT_BYTES = 4608
_BARRIERS = 16
_STEPS = 2**31 - 1


@dataclass(frozen=True)
class Tile:
    """An instance of the kernel."""

    rows: int
    tokens: int
    warps: int
    resident: int
    """Thread blocks that fit into the registers of a multiprocessor."""

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage: weights, x, and two barriers."""
        return self.rows // _UNIT * _UNIT_BYTES + self.tokens * 2 * _UNIT + _BARRIERS

    @property
    def floats(self) -> int:
        """Of its sums."""
        return self.rows * self.tokens


TILES = (
    Tile(256, 128, warps=8, resident=1),
    Tile(128, 128, warps=4, resident=2),
    Tile(256, 64, warps=4, resident=2),
    Tile(128, 64, warps=4, resident=3),
)


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """One way to run the kernel; the library checks it."""

    kernel: str = "tiles"
    rows: int
    """Of a tile; with `tokens` one of `TILES`."""
    tokens: int
    stages: int
    """Steps of 64 columns in flight: 2 to 8, as shared memory allows."""
    blocks: int
    """Thread blocks: 1 to the number of pairs (tile, step)."""
    waves: int
    """Tiles that a thread block computes whole: 0 to ceil(tiles / blocks)."""
    group: int
    """Row blocks whose tiles are computed at about the same time, to share the L2 cache."""

    @property
    def tile(self) -> Tile:
        """The instance."""
        return next(t for t in TILES if (t.rows, t.tokens) == (self.rows, self.tokens))


def supports(m: int, n: int, k: int, capability: tuple[int, int]) -> bool:
    """Whether the kernel takes x [m, k] and a weight [n, k] on a device of this capability."""
    tile = TILES[0]
    tiles = -(-n // tile.rows) * -(-m // tile.tokens)
    fits = 1 <= m <= MAX_SIZE and max(n, k) <= MAX_SIZE and tiles * -(-k // _UNIT) <= _STEPS
    return fits and capability >= (8, 0)


def shared_bytes(capability: tuple[int, int]) -> int:
    """What a thread block may use of a multiprocessor's shared memory; one KiB more is there."""
    large = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}
    return large.get(capability, 99) * 1024


def needs(config: TilesConfig, m: int, n: int, k: int) -> Needs:
    """For x [m, k] and a weight [n, k]."""
    tiles = tile_count(config.tile, m, n)
    left = tiles - min(config.waves * config.blocks, tiles)
    sharers = min(config.blocks, left * -(-k // _UNIT))
    return needs_of(left, sharers, config.tile.floats, config.tile.warps)


def tile_count(tile: Tile, m: int, n: int) -> int:
    """Tiles of y [m, n]."""
    return -(-n // tile.rows) * -(-m // tile.tokens)


def occupancy(tile: Tile, capability: tuple[int, int]) -> tuple[int, int]:
    """Thread blocks a multiprocessor, as many as fit with two stages or more; and stages."""
    most = shared_bytes(capability)
    for resident in range(tile.resident, 0, -1):
        stages = ((most + 1024) // resident - 1024) // tile.stage_bytes
        if stages >= 2:
            return resident, min(stages, MAX_STAGES)
    raise AssertionError("one thread block of two stages fits on every GPU")
