"""How the compiled 2:4 kernel for few tokens divides its work: the config and its default.

A thread block owns `warps * row_tiles * 16` rows and walks along K in steps of 64 columns. The
pairs (row block, step) are divided into `blocks` contiguous ranges of equal length. A row block
that several thread blocks share is summed in fixed order: through shared memory where they are a
cluster, else through a workspace by the last of them to arrive. The formulas are those of
`csrc/include/secateur/schedule.h` and `skinny/problem.h`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from secateur_kernels.sparse24_linear.cuda_needs import Needs, needs_of

MAX_TOKENS = 64
MAX_SIZE = 1 << 30
"""Of rows and columns."""
CLUSTERS = (2, 4, 8)
_TILE_ROWS = 16
_UNIT = 64
_UNIT_BYTES = 4608
_LANES = 32
_MAX_STAGES = 16
_HOPPER = (9, 0)
_LARGEST_EXCHANGE = 32 * 1024 + 16
"""Beside which a ring for two thread blocks a multiprocessor is worth it."""


@dataclass(frozen=True, kw_only=True)
class SkinnyConfig:
    """One way to run the kernel; the library checks it."""

    kernel: str = "skinny"
    warps: int
    """That multiply: 1 to 8, or to 4 for 4 row tiles and more than 32 tokens."""
    row_tiles: int
    """Of 16 rows, a warp: 2 or 4. `warps * row_tiles` is a multiple of 4."""
    stages: int
    """Steps of 64 columns in flight: 2 to 16, as shared memory allows."""
    blocks: int
    """Thread blocks: 1 to the number of pairs (row block, step)."""
    cluster: int = 1
    """Thread blocks of a cluster: 1, or on compute capability 9.0 2, 4 or 8. Each cluster then owns
    one row block: `blocks` is row blocks * `cluster`."""
    lead: int = 0
    """Steps that a thread block has not asked for yet when it lets the next kernel start; 0: it
    does so behind its first stages. The result is the same."""
    ahead: int = 0
    """Steps behind those in flight whose weights are asked for into the L2 cache, so that memory is
    busy while the kernel in front ends: 0 to 1024. The result is the same. Only on 9.0."""

    @property
    def block_rows(self) -> int:
        """Rows of the weight that a thread block owns."""
        return self.warps * self.row_tiles * _TILE_ROWS


def supports(m: int, n: int, k: int, capability: tuple[int, int]) -> bool:
    """Whether the kernel takes x [m, k] and a weight [n, k] on a device of this capability."""
    fits = 1 <= m <= MAX_TOKENS and max(n, k) <= MAX_SIZE
    return fits and capability >= (8, 0)


def token_tiles(m: int) -> int:
    """Groups of eight tokens that are computed: 1, 2, 4 or 8."""
    return next(tiles for tiles in (1, 2, 4, 8) if m <= 8 * tiles)


def shared_bytes(capability: tuple[int, int], alone: bool = False) -> int:
    """What a thread block may use of shared memory.

    On 9.0 two thread blocks then share a multiprocessor: two of a layer, or one of it and one of
    the next, which fetches its first weights meanwhile; or it is alone there, with all of it.
    Elsewhere what every GPU from 8.0 on has.
    """
    if capability != _HOPPER:
        return 99 * 1024
    return (227 if alone else 113) * 1024


def stage_bytes(block_rows: int, m: int) -> int:
    """Shared memory of a stage: weights, x, and two barriers."""
    return block_rows // _UNIT * _UNIT_BYTES + token_tiles(m) * 8 * 2 * _UNIT + 16


def exchange_bytes(warps: int, row_tiles: int, m: int, cluster: int) -> int:
    """Shared memory for what the thread blocks of a cluster hand over, and a barrier."""
    if cluster == 1:
        return 0
    item_tiles = min(token_tiles(m), 2)
    items = warps * row_tiles * token_tiles(m) // item_tiles
    return 16 + cluster * -(-items // cluster) * item_tiles * _LANES * 16


def late_lead(stages: int) -> int:
    """A lead with which the next kernel runs when this one asks for its last stages.

    Clusters of the next kernel that are there earlier take places from those of this one and of the
    one after it: on an H200 such configs were up to 25% faster with this lead than with none, those
    without clusters up to 5% slower.
    """
    return (stages + 1) // 2


def needs(config: SkinnyConfig, m: int, n: int, k: int) -> Needs:
    """For x [m, k] and a weight [n, k]."""
    row_blocks, _ = grid(config.block_rows, n, k)
    if config.cluster > 1:
        return Needs(0, 0)
    return needs_of(row_blocks, config.blocks, slot_floats(config.block_rows, m), config.warps)


def grid(block_rows: int, n: int, k: int) -> tuple[int, int]:
    """Row blocks, and steps of 64 columns."""
    panels = -(-n // _UNIT)
    return -(-panels // (block_rows // _UNIT)), -(-k // _UNIT)


def slot_floats(block_rows: int, m: int) -> int:
    """The sums of a thread block."""
    return block_rows * token_tiles(m) * 8


@dataclass(frozen=True)
class Split:
    """Rows of a thread block, and how K is divided."""

    block_rows: int
    blocks: int
    cluster: int = 1

    def config(
        self, row_tiles: int, m: int, capability: tuple[int, int], alone: bool = False
    ) -> SkinnyConfig:
        """With as many stages as fit; `alone` on a multiprocessor, or for two thread blocks."""
        warps = self.block_rows // (_TILE_ROWS * row_tiles)
        exchange = exchange_bytes(warps, row_tiles, m, self.cluster)
        # Where clusters exchange the sums of 64 tokens, little is left for two.
        alone = alone or exchange > _LARGEST_EXCHANGE
        fit = (shared_bytes(capability, alone) - exchange) // stage_bytes(self.block_rows, m)
        stages = min(_MAX_STAGES, fit)
        return SkinnyConfig(
            warps=warps,
            row_tiles=row_tiles,
            stages=stages,
            blocks=self.blocks,
            cluster=self.cluster,
            lead=late_lead(stages) if self.cluster > 1 else 0,
        )


def splits(block_rows: int, n: int, k: int, fewest: int, most: int, clusters: bool) -> list[Split]:
    """Ways to occupy at least `fewest` and at most `most` thread blocks, where there are such.

    Args:
        block_rows: of a thread block.
        n: rows of the weight.
        k: columns of the weight.
        fewest: thread blocks, but for equal ranges.
        most: thread blocks.
        clusters: whether the device has them.

    Returns:
        whole row blocks, K in whole parts (by cluster and by workspace), and equal ranges.
    """
    row_blocks, steps = grid(block_rows, n, k)
    most = min(most, most_blocks(block_rows, n, k))
    parts = range(-(-fewest // row_blocks), min(steps, most // row_blocks) + 1)
    found = [Split(block_rows, row_blocks * c, c) for c in CLUSTERS if clusters and c in parts]
    if parts:
        found.append(Split(block_rows, row_blocks * parts[-1]))
    if row_blocks <= most and row_blocks >= fewest:
        found.append(Split(block_rows, row_blocks))
    found.append(Split(block_rows, most))
    return list(dict.fromkeys(found))


def most_blocks(block_rows: int, n: int, k: int) -> int:
    """The most thread blocks: the kernel divides in 32 bits."""
    row_blocks, steps = grid(block_rows, n, k)
    return min(row_blocks * steps, (2**31 - 1) // (row_blocks * steps + 1))


def block_row_choices(n: int) -> Iterator[int]:
    """Rows of a thread block that do not exceed the weight by much."""
    return (rows for rows in (256, 192, 128, 64) if rows < n + _UNIT)
