"""How the compiled low-rank kernels that fetch boxes divide their work.

One warp fetches boxes of 256 columns of 16 to 64 rows for eight others, through one ring. See
`csrc/include/secateur/low_rank/boxes/problem.h`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from secateur_kernels.low_rank_linear.cuda_config import (
    BOX_COLUMNS,
    BOX_WARPS,
    MAX_BOX_ROW_TILES,
    MAX_BOX_TOKENS,
    LowRankCudaConfig,
    LowRankShape,
    box_shared_bytes,
    box_stage_bytes,
    hidden_bytes,
)

_ROWS = 16  # of a row tile
_CHUNK = 128  # columns by which K is split
_MAX_SPLITS = 16
_MAX_STAGES = 16

# In flight, a multiprocessor: from about 90 KB on, memory is read at full speed.
_RING_BYTES = 96 * 1024
# What a thread block and the system take of shared memory beside what was asked for.
_RESERVED_BYTES = 1024

# What crosses from L2 alone takes this part of the time of what comes from memory.
_L2_COST = 0.65
# A stage takes as long as this much of the memory's bytes, however few it has.
_STAGE_BYTES = 12 * 1024
# Sums of a row block over all warps take as long as this much of the memory's bytes.
_ROW_BLOCK_BYTES = 8 * 1024
# Thread blocks of the second kernel that find no room beside the first's start later by as much.
_LATE_BYTES = 40 * 1024


def takes_boxes(shape: LowRankShape, capability: tuple[int, int]) -> bool:
    """Whether the kernels that fetch boxes take the shape on a device.

    They take no silu_and_mul either, and x and down only in rows at multiples of 16 bytes.
    """
    return (
        capability == (9, 0)
        and shape.m <= MAX_BOX_TOKENS
        and not shape.sparse
        and shape.k % 8 == 0
        and any(True for _ in box_configs(shape, 132, 227 * 1024))
    )


class _Down(NamedTuple):
    row_tiles: int
    splits: int


def box_configs(
    shape: LowRankShape, num_sms: int, shared_bytes: int
) -> Iterator[LowRankCudaConfig]:
    """The best guess first; none where t does not fit into shared memory.

    Args:
        shape: the problem.
        num_sms: multiprocessors of the device.
        shared_bytes: shared memory that a thread block may use.
    """
    tiles = range(MAX_BOX_ROW_TILES, 0, -1)
    downs = sorted(
        (_best_down(shape, row_tiles, num_sms) for row_tiles in tiles),
        key=lambda down: _down_cost(shape, down, num_sms),
    )
    ups = sorted(tiles, key=lambda row_tiles: _up_cost(shape, row_tiles, num_sms, shared_bytes))
    for up in ups:
        for down in downs:
            config = _config(shape, down, up, num_sms, shared_bytes)
            if config is not None:
                yield config


def _best_down(shape: LowRankShape, row_tiles: int, num_sms: int) -> _Down:
    """At most one thread block a multiprocessor, unless there are more row blocks than that."""
    blocks = _ceil(shape.groups * shape.rank, _ROWS * row_tiles)
    most = min(_MAX_SPLITS, _ceil(shape.k, _CHUNK), max(1, num_sms // blocks))
    options = [_Down(row_tiles, splits) for splits in range(1, most + 1)]
    return min(options, key=lambda down: _down_cost(shape, down, num_sms))


def _down_cost(shape: LowRankShape, down: _Down, num_sms: int) -> float:
    """Bytes for the busiest multiprocessor, partial sums on their way to the second kernel too."""
    rows = _ROWS * down.row_tiles
    blocks = _ceil(shape.groups * shape.rank, rows) * down.splits
    columns = _ceil(_ceil(shape.k, _CHUNK), down.splits) * _CHUNK
    moved = columns * max(2 * (rows + _L2_COST * shape.m), _STAGE_BYTES / BOX_COLUMNS)
    return _ceil(blocks, num_sms) * moved + _L2_COST * 4 * down.splits * shape.m * shape.rank


def _up_cost(shape: LowRankShape, row_tiles: int, num_sms: int, shared_bytes: int) -> int:
    rows = _ROWS * row_tiles
    turns = _ceil(_ceil(shape.n, rows), num_sms)
    stage, hidden = box_stage_bytes(row_tiles, 0), hidden_bytes(shape)
    beside = _RING_BYTES + box_shared_bytes(2, stage, row_tiles, shape.m, hidden) <= shared_bytes
    return turns * (2 * rows * shape.rank + _ROW_BLOCK_BYTES) + (0 if beside else _LATE_BYTES)


def _config(
    shape: LowRankShape, down: _Down, up_row_tiles: int, num_sms: int, shared_bytes: int
) -> LowRankCudaConfig | None:
    columns = _ceil(_ceil(shape.k, _CHUNK), down.splits) * _CHUNK
    stage = box_stage_bytes(down.row_tiles, shape.m)
    down_stages = _stages(_RING_BYTES, stage, _ceil(columns, BOX_COLUMNS))
    down_shared = box_shared_bytes(down_stages, stage, down.row_tiles, shape.m, 0)
    # Thread blocks of both kernels side by side, if that leaves two stages.
    row_blocks = _ceil(shape.n, _ROWS * up_row_tiles)
    blocks = min(row_blocks, num_sms)
    useful = _ceil(row_blocks, blocks) * _ceil(shape.rank, BOX_COLUMNS)
    stage = box_stage_bytes(up_row_tiles, 0)
    fixed = box_shared_bytes(0, stage, up_row_tiles, shape.m, hidden_bytes(shape)) + 16 * 16
    beside = shared_bytes - _RESERVED_BYTES - down_shared - fixed
    alone = shared_bytes - fixed
    ring = min(_RING_BYTES, beside if beside >= 2 * stage else alone)
    if ring < 2 * stage:
        return None
    return LowRankCudaConfig(
        BOX_WARPS,
        down.row_tiles,
        down_stages,
        down.splits,
        BOX_WARPS,
        up_row_tiles,
        _stages(ring, stage, useful),
        blocks,
        1,
        1,
    )


def _stages(ring_bytes: int, stage_bytes: int, useful: int) -> int:
    return max(2, min(_MAX_STAGES, useful, ring_bytes // stage_bytes))


def _ceil(size: int, part: int) -> int:
    return -(-size // part)
