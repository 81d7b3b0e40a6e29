"""How the compiled 2:4 kernel for warpgroups (compute capability 9.0) divides its work.

y is cut into tiles, one at a time for a thread block. A cluster of thread blocks works on a group
of tiles: those side by side along rows fetch x together, those along tokens the weight. `waves`
times as many groups as there are clusters are given out whole; what is left is divided into
contiguous ranges of steps of 64 columns, and a group that several ranges share is summed through a
workspace in fixed order. Or a cluster splits the steps of its tiles as well: several of its thread
blocks take an equal part each, and sum up through shared memory, in fixed order too. The formulas
are those of
`csrc/include/secateur/tile_schedule.h` and `wide/problem.h`.
"""

from dataclasses import dataclass

from secateur_kernels.sparse24_linear.cuda_needs import Needs, needs_of

MAX_SIZE = 2**30
MAX_STAGES = 16
MOST_STEPS = 2**31 - 1
"""Of 64 columns, in all groups of tiles together."""
SHARED_BYTES = 227 * 1024
"""What a thread block may have."""
HALF_SHARED_BYTES = 113 * 1024
"""What it may have if two are to share a multiprocessor."""

_CAPABILITY = (9, 0)
_UNIT = 64
_UNIT_BYTES = 4608
_TOKEN_BYTES = 128
_BARRIERS = 16
_STAGING_BYTES = 2048
_ALIGNMENT = 1008


@dataclass(frozen=True)
class Tile:
    """An instance of the kernel: what a thread block computes at a time."""

    warpgroups: int
    panels: int
    tokens: int

    @property
    def rows(self) -> int:
        """Of the weight."""
        return self.warpgroups * self.panels * _UNIT

    @property
    def floats(self) -> int:
        """Of its sums."""
        return self.rows * self.tokens

    @property
    def splits_steps(self) -> bool:
        """Whether clusters can split its steps."""
        return self.panels * self.tokens <= 2 * _UNIT

    @property
    def resident(self) -> int:
        """Thread blocks that fit into the registers of a multiprocessor."""
        return 2 if self.panels * self.tokens <= _UNIT else 1

    def shared_bytes(self, stages: int) -> int:
        """Shared memory of a thread block: the ring of stages, and what results go through."""
        stage = self.rows // _UNIT * _UNIT_BYTES + self.tokens * _TOKEN_BYTES + _BARRIERS
        return _ALIGNMENT + stages * stage + self.warpgroups * 4 * _STAGING_BYTES

    def most_stages(self, shared_bytes: int) -> int:
        """As many as fit."""
        stage = self.shared_bytes(1) - self.shared_bytes(0)
        return min(MAX_STAGES, (shared_bytes - self.shared_bytes(0)) // stage)


TILES = (
    Tile(2, 1, 32),
    Tile(2, 2, 32),
    Tile(2, 1, 64),
    Tile(2, 2, 64),
    Tile(2, 1, 128),
    Tile(2, 2, 128),
    Tile(3, 1, 192),
    Tile(2, 1, 256),
)


@dataclass(frozen=True, kw_only=True)
class WideConfig:
    """One way to run the kernel; the library checks it."""

    kernel: str = "wide"
    warpgroups: int
    """That multiply; with `panels` and `tokens` one of `TILES`."""
    panels: int
    """Of 64 rows, a warpgroup."""
    tokens: int
    """Of a tile."""
    stages: int
    """Steps of 64 columns in flight: 2 to 16, as shared memory allows."""
    cluster_rows: int = 1
    """Tiles along rows that fetch x together: 1, 2 or 4."""
    cluster_tokens: int = 1
    """Tiles along tokens that fetch the weight together: 1, 2 or 4; 8 in all at most."""
    cluster_steps: int = 1
    """Thread blocks that split the steps of a tile: 1, 2, 4 or 8; with the other two 8 in all at
    most. Above 1 all tiles are whole, and the sums of one fit into the ring."""
    blocks: int
    """Thread blocks: whole clusters, at most one for each pair (group of tiles, step)."""
    waves: int
    """Groups of tiles that a cluster computes whole: 0 to ceil(groups / clusters)."""
    group: int
    """Groups of tiles along rows that are computed at about the same time."""
    late: bool = False
    """When a thread block lets the next kernel start: behind its first stages, or late, when it has
    asked for all weights. The result is the same."""
    ahead: int = 0
    """Steps behind those in flight whose weights are asked for into the L2 cache, so that memory is
    busy while the kernel in front ends: 0 to 1024. The result is the same."""

    @property
    def tile(self) -> Tile:
        """The instance."""
        return Tile(self.warpgroups, self.panels, self.tokens)

    @property
    def cluster(self) -> int:
        """Thread blocks of a cluster."""
        return self.cluster_rows * self.cluster_tokens * self.cluster_steps


def supports(m: int, n: int, k: int, capability: tuple[int, int]) -> bool:
    """Whether the kernel takes x [m, k] and a weight [n, k] on a device of this capability."""
    if capability != _CAPABILITY or not (1 <= m <= MAX_SIZE and max(n, k) <= MAX_SIZE):
        return False
    # Of the tile that covers the most.
    return groups_of(Tile(2, 2, 128), (1, 1), m, n) * -(-k // _UNIT) <= MOST_STEPS


def needs(config: WideConfig, m: int, n: int, k: int) -> Needs:
    """For x [m, k] and a weight [n, k]."""
    groups = groups_of(config.tile, (config.cluster_rows, config.cluster_tokens), m, n)
    clusters = config.blocks // config.cluster
    left = groups - min(config.waves * clusters, groups)
    sharers = min(clusters, left * -(-k // _UNIT))
    warps = config.warpgroups * 4
    return needs_of(left, sharers, config.cluster * config.tile.floats, config.cluster * warps)


def groups_of(tile: Tile, cluster: tuple[int, int], m: int, n: int) -> int:
    """Groups of tiles of y [m, n], for clusters of so many tiles of rows and of tokens."""
    return -(-n // (tile.rows * cluster[0])) * -(-m // (tile.tokens * cluster[1]))
