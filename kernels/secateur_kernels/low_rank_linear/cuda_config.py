"""How the compiled low-rank kernels divide their work: config, default, and what is worth timing.

Two kernels: t = x @ down.T, and t @ up.T with the epilogue. In both a thread block owns 16 or 32
rows of a factor at a time, and its warps take chunks of 128 columns in turns, each through a ring
of its own. The first splits K over thread blocks as well; the second adds those partial sums while
it loads t, and keeps t in shared memory. For up to 16 tokens on 9.0 one warp can fetch boxes for
all others instead: `cuda_boxes.py` divides those, `cuda_choice.py` chooses. The formulas are those
of `csrc/include/secateur/low_rank/problem.h`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from secateur_kernels.layouts.low_rank import RANK_STEP

MAX_TOKENS = 64
MAX_GROUPS = 8
MAX_WARPS = 8
MAX_SPLITS = 64
BOX_WARPS = 8
BOX_COLUMNS = 256
MAX_BOX_TOKENS = 16
MAX_BOX_ROW_TILES = 4
_MAX_STAGES = 16
_TILE_ROWS = 16
_CHUNK = 128
_TILE_BYTES = _TILE_ROWS * _CHUNK * 2
_SPARSE_TILE_BYTES = 2 * 1152
_HIDDEN_ROW_BYTES = 4 * _CHUNK
_SUMS_BYTES = 512

# Shared memory a thread block may have: on 8.0, on 9.0 and 10.x, and everywhere from 8.0 on.
_SHARED_BYTES = {(8, 0): 163 * 1024, (8, 7): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024}
_SHARED_BYTES_ANYWHERE = 99 * 1024

# What the system takes of shared memory for a second thread block.
_RESERVED_BYTES = 1024

# Of a multiprocessor, for rings: twice what the memory's latency asks for, and little enough for
# thread blocks of both kernels to stand side by side. A warp with many chunks to go through has two
# stages all the same.
_RING_BYTES = 80 * 1024
_MANY_CHUNKS = 4

# What crosses from L2 alone takes this part of the time of what comes from memory.
_L2_COST = 0.65


@dataclass(frozen=True)
class LowRankCudaConfig:
    """One way to run both kernels; the library checks it.

    More up blocks than there are row blocks are cut to them, and an odd number of up row tiles is
    taken as one more where gate and up rows are computed together.
    """

    down_warps: int
    """1 to 8."""
    down_row_tiles: int
    """Of 16 rows, a thread block at a time: 1 or 2; 2 for more than 16 tokens."""
    down_stages: int
    """Chunks in flight, a warp: 1 to 16, as shared memory allows."""
    splits: int
    """Ranges of K, a thread block each: 1 to 64."""
    up_warps: int
    up_row_tiles: int
    up_stages: int
    up_blocks: int
    """Thread blocks of the second kernel."""
    down_boxes: int = 0
    """Above 0 one warp fetches boxes for 8 others, of 1 to 4 row tiles; stages are those of all.
    So many thread blocks, a cluster, split the columns of a row block and add up: 1, 2, 4 or 8,
    which divides `splits`."""
    up_boxes: int = 0
    """The same; divides `up_blocks`, and has at most a row tile and eight tokens for each."""
    down_ahead: int = 0
    """Stages behind those in flight whose weights are asked for into the L2 cache, so that memory
    is busy while the kernel in front ends: 0 to 1024, 0 without boxes. The result is the same."""
    up_ahead: int = 0

    def __str__(self) -> str:
        ahead = f"; {self.down_ahead} and {self.up_ahead} stages ahead"
        return (
            f"down {self.down_row_tiles * _TILE_ROWS} rows, {self.down_warps} warps "
            f"{_rings(self.down_boxes)} {self.down_stages} stages, K in {self.splits}; up "
            f"{self.up_row_tiles * _TILE_ROWS} rows, {self.up_warps} warps {_rings(self.up_boxes)} "
            f"{self.up_stages} stages, {self.up_blocks} blocks"
            f"{ahead if self.down_ahead or self.up_ahead else ''}"
        )


@dataclass(frozen=True)
class LowRankShape:
    """What the division depends on."""

    m: int
    n: int
    k: int
    rank: int
    groups: int = 1
    sparse: bool = False
    """A 2:4 weight stands beside the factors."""


def shared_bytes_of(capability: tuple[int, int]) -> int:
    """Shared memory that a thread block may have."""
    return _SHARED_BYTES.get(capability, _SHARED_BYTES_ANYWHERE)


def supports(shape: LowRankShape, capability: tuple[int, int]) -> bool:
    """Whether the kernels take the shape on a device of this compute capability.

    t of all tokens has to fit into shared memory: on an H200 up to 64 tokens of rank 512, 32 of
    rank 1024, 16 of rank 2048.
    """
    if not 1 <= shape.m <= MAX_TOKENS or capability < (8, 0):
        return False
    if shape.rank < 1 or shape.rank % RANK_STEP or not 1 <= shape.groups <= MAX_GROUPS:
        return False
    if shape.sparse and shape.k % 4:
        return False
    return _up_shared(shape, 2, 2, 1) <= shared_bytes_of(capability)


def workspace_floats(config: LowRankCudaConfig, m: int, hidden_columns: int) -> int:
    """fp32 numbers between the two kernels, for groups * rank columns of t."""
    return config.splits // max(1, config.down_boxes) * m * hidden_columns


def down_shared_bytes(config: LowRankCudaConfig, m: int) -> int:
    """Shared memory of a thread block of the first kernel."""
    if config.down_boxes:
        stage = box_stage_bytes(config.down_row_tiles, m)
        tiles = config.down_row_tiles * token_tiles(m)
        return box_shared_bytes(config.down_stages, stage, 0, tiles, config.down_boxes)
    stage = config.down_row_tiles * _TILE_BYTES + m * _CHUNK * 2
    return _shared(config.down_warps, config.down_stages, stage, config.down_row_tiles, m)


def up_shared_bytes(config: LowRankCudaConfig, shape: LowRankShape) -> int:
    """The most shared memory of a thread block of the second kernel."""
    if config.up_boxes:
        stage, hidden = (
            box_stage_bytes(config.up_row_tiles, 0),
            hidden_bytes(shape, config.up_boxes),
        )
        tiles = config.up_row_tiles * token_tiles(shape.m)
        return box_shared_bytes(config.up_stages, stage, hidden, tiles, config.up_boxes)
    return _up_shared(shape, config.up_row_tiles, config.up_warps, config.up_stages)


def box_stage_bytes(row_tiles: int, x_tokens: int) -> int:
    """Boxes of 256 columns: of a thread block's rows, and of x where that is read."""
    x_rows = 8 * token_tiles(x_tokens) if x_tokens else 0
    return 2 * BOX_COLUMNS * (_TILE_ROWS * row_tiles + x_rows)


def box_shared_bytes(stages: int, stage_bytes: int, hidden: int, tiles: int, cluster: int) -> int:
    """Shared memory of a thread block that fetches boxes, for `tiles` of 16 rows and 8 tokens."""
    inbox = 0 if cluster == 1 else 2 * _ceil(tiles, cluster) * cluster
    sums = (BOX_WARPS * tiles + inbox) * _SUMS_BYTES
    return 1024 + stages * (stage_bytes + 16) + hidden + sums + 4 * BOX_WARPS + 24


def hidden_bytes(shape: LowRankShape, cluster: int) -> int:
    """t of one group in shared memory, as much of it as one thread block of a cluster needs."""
    return _ceil(_chunks(shape.rank), cluster) * shape.m * _HIDDEN_ROW_BYTES


def default_config(
    shape: LowRankShape, num_sms: int, shared_bytes: int = _SHARED_BYTES_ANYWHERE
) -> LowRankCudaConfig:
    """A good guess: the least to move for the busiest multiprocessor.

    Args:
        shape: the problem; `supports` it.
        num_sms: multiprocessors of the device.
        shared_bytes: shared memory that a thread block may use.
    """
    num_sms = max(num_sms, 1)
    down = min(_down_options(shape, num_sms), key=lambda option: _down_cost(shape, option, num_sms))
    if shape.sparse and shape.m <= 16:
        return _config(shape, down, 1, 1, num_sms, shared_bytes)
    # t is cut for two row tiles at a time. Two thread blocks share a multiprocessor where they can.
    beside = _config(shape, down, 2, 2, num_sms, shared_bytes)
    if shape.m <= 16 and 2 * up_shared_bytes(beside, shape) + _RESERVED_BYTES <= shared_bytes:
        return beside
    return _config(shape, down, 2, 1, num_sms, shared_bytes)


def candidate_configs(
    shape: LowRankShape, num_sms: int = 0, shared_bytes: int = _SHARED_BYTES_ANYWHERE
) -> list[LowRankCudaConfig]:
    """At most 16 configs that are worth timing; the first is the default.

    Args:
        shape: the problem; `supports` it.
        num_sms: multiprocessors of the device; 0 stands for 132.
        shared_bytes: shared memory that a thread block may use.
    """
    num_sms = num_sms or 132
    found = {default_config(shape, num_sms, shared_bytes): None}
    downs = sorted(
        _down_options(shape, num_sms), key=lambda option: _down_cost(shape, option, num_sms)
    )
    for down in downs[:3]:
        for row_tiles in (1, 2) if shape.m <= 16 else (2,):
            for depth in (1, 2):
                found[_config(shape, down, row_tiles, depth, num_sms, shared_bytes)] = None
    for config in list(found)[:3]:
        shallow = replace(config, up_stages=max(1, config.up_stages // 2))
        found[shallow] = None
    return list(found)[:16]


_Down = tuple[int, int]
"""Row tiles and ranges of K."""


def _down_options(shape: LowRankShape, num_sms: int) -> Iterator[_Down]:
    """Ranges of at least two chunks, thread blocks for at most four waves."""
    for row_tiles in (1,) if shape.m <= 8 else (1, 2) if shape.m <= 16 else (2,):
        blocks = _row_blocks(shape.groups * shape.rank, row_tiles)
        yield row_tiles, 1
        for splits in range(2, min(MAX_SPLITS, max(1, _chunks(shape.k) // 2)) + 1):
            if blocks * splits <= 4 * num_sms:
                yield row_tiles, splits


def _down_cost(shape: LowRankShape, option: _Down, num_sms: int) -> float:
    """Bytes for the busiest multiprocessor, partial sums on their way to the second kernel too."""
    row_tiles, splits = option
    blocks = _row_blocks(shape.groups * shape.rank, row_tiles) * splits
    chunks = _ceil(_chunks(shape.k), splits)
    moved = chunks * _CHUNK * 2 * (row_tiles * _TILE_ROWS + _L2_COST * shape.m)
    sets = min(shape.groups, 2)
    return _ceil(blocks, num_sms) * moved + _L2_COST * 4 * splits * shape.m * shape.rank * sets


def _config(
    shape: LowRankShape, down: _Down, up_row_tiles: int, depth: int, num_sms: int, shared_bytes: int
) -> LowRankCudaConfig:
    """With `depth` thread blocks of the second kernel where one would do."""
    down_row_tiles, splits = down
    down_chunks = _ceil(_chunks(shape.k), splits)
    down_warps = _warps(down_chunks)
    together = _ceil(_row_blocks(shape.groups * shape.rank, down_row_tiles) * splits, num_sms)
    down_stage = down_row_tiles * _TILE_BYTES + shape.m * _CHUNK * 2
    down_stages = _stages(
        _RING_BYTES // min(together, 2), down_warps, down_stage, _ceil(down_chunks, down_warps)
    )
    up_chunks = _chunks(shape.rank) + (_chunks(shape.k) if shape.sparse else 0)
    up_warps = _warps(up_chunks)
    side_by_side = depth * max(1, MAX_WARPS // up_warps)
    row_blocks = _row_blocks(shape.n, up_row_tiles)
    blocks = min(row_blocks, num_sms * side_by_side)
    units = _ceil(row_blocks, blocks) * _ceil(up_chunks, up_warps)
    stage = _up_stage(shape, up_row_tiles)
    # Two row tiles take the room of one where gate and up rows need that.
    while up_warps > 1 and _up_shared(shape, 2, up_warps, 1) > shared_bytes:
        up_warps -= 1
    up_stages = _stages(_RING_BYTES // min(side_by_side, 2), up_warps, stage, units)
    while (
        up_stages > 1 and _most_up_shared(shape, up_row_tiles, up_warps, up_stages) > shared_bytes
    ):
        up_stages -= 1
    while (
        down_warps > 1
        and _shared(down_warps, 1, down_stage, down_row_tiles, shape.m) > shared_bytes
    ):
        down_warps -= 1
    while (
        down_stages > 1
        and _shared(down_warps, down_stages, down_stage, down_row_tiles, shape.m) > shared_bytes
    ):
        down_stages -= 1
    return LowRankCudaConfig(
        down_warps=down_warps,
        down_row_tiles=down_row_tiles,
        down_stages=down_stages,
        splits=splits,
        up_warps=up_warps,
        up_row_tiles=up_row_tiles,
        up_stages=up_stages,
        up_blocks=blocks,
    )


def _warps(chunks: int) -> int:
    """As many as leave the fewest without work in the last turn."""
    return min(range(1, MAX_WARPS + 1), key=lambda warps: (_ceil(chunks, warps), warps))


def _stages(ring_bytes: int, warps: int, stage_bytes: int, useful: int) -> int:
    least = 2 if useful > _MANY_CHUNKS else 1
    return min(_MAX_STAGES, useful, max(least, ring_bytes // (warps * stage_bytes)))


def _rings(boxes: int) -> str:
    return "of" if boxes == 0 else f"in clusters of {boxes} that share"


def token_tiles(m: int) -> int:
    """Groups of eight tokens that are computed."""
    return next(tiles for tiles in (1, 2, 4, 8) if m <= 8 * tiles)


def _chunks(columns: int) -> int:
    return _ceil(columns, _CHUNK)


def _row_blocks(rows: int, row_tiles: int) -> int:
    return max(1, _ceil(rows, _TILE_ROWS * row_tiles))


def _up_stage(shape: LowRankShape, row_tiles: int) -> int:
    packed = row_tiles * _SPARSE_TILE_BYTES + 2 * token_tiles(shape.m) * 8 * _CHUNK
    return max(row_tiles * _TILE_BYTES, packed if shape.sparse else 0)


def _up_shared(shape: LowRankShape, row_tiles: int, warps: int, stages: int) -> int:
    hidden = min(shape.groups, 2) * _chunks(shape.rank) * shape.m * _HIDDEN_ROW_BYTES
    stage = _up_stage(shape, row_tiles)
    return hidden + _shared(warps, stages, stage, row_tiles, shape.m)


def _most_up_shared(shape: LowRankShape, row_tiles: int, warps: int, stages: int) -> int:
    """With gate and up rows as well, for which one row tile becomes two, with twice the sums.

    A config serves calls with and without them: whether there are any is not its business.
    """
    alone = _up_shared(shape, row_tiles, warps, stages)
    return max(alone, _up_shared(shape, 2, warps, max(1, row_tiles * stages // 2)))


def _shared(warps: int, stages: int, stage_bytes: int, row_tiles: int, m: int) -> int:
    sums = row_tiles * token_tiles(m) * _SUMS_BYTES
    return warps * (stages * (stage_bytes + 8) + 2 * sums)


def _ceil(size: int, part: int) -> int:
    return -(-size // part)
