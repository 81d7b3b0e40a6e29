"""How the compiled low-rank kernels that fetch boxes divide their work.

One warp fetches boxes of 256 columns of 16 to 64 rows for eight others, through one ring. See
`csrc/include/secateur/low_rank/boxes/problem.h`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
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
    down_shared_bytes,
    hidden_bytes,
    shared_bytes_of,
    token_tiles,
    up_shared_bytes,
)
from secateur_kernels.sparse24_linear.cuda_rates import ahead_choices, clusters_at_once

_HOPPER = (9, 0)
_ROWS = 16  # of a row tile
_CHUNK = 128  # columns by which K and the rank are split
_MAX_SPLITS = 16
_LEAST_STAGES = 2
_MAX_STAGES = 16
_CLUSTERS = (1, 2, 4, 8)
_STAGE_BARRIERS = 16
# As many configs have the same rows in one of the kernels.
_ALIKE = 3

# In flight, a multiprocessor: of either kernel where thread blocks of both stand side by side, and
# of the second where they do not. From about 90 KB on, memory is read at full speed.
_DOWN_RING_BYTES = 112 * 1024
_UP_RING_BYTES = 96 * 1024
_UP_RING_BYTES_ALONE = 128 * 1024
_STAGES_BESIDE = 3
# What the system takes of shared memory for a thread block beside what was asked for.
_RESERVED_BYTES = 1024

# Costs are bytes that a multiprocessor reads from memory in the same time: about 34 KB in a
# microsecond. What crosses from L2 alone takes this part of it; t, which nothing else is read
# beside, as much as from memory.
_L2_COST = 0.65
# A stage takes as long as this, however little it has; for more than eight tokens in the second
# kernel, where t is cut for so few rows.
_STAGE_BYTES = 12 * 1024
_STAGE_BYTES_OF_TWO_TOKEN_TILES = 16 * 1024
# A ring of few stages has less in flight while one of them is read: this part of the time, of two.
_LUMPS_COST = 0.12
# Sums of a row block: over all warps, and over a cluster.
_SUMS_BYTES = 8 * 1024
_CLUSTER_BYTES = 4 * 1024
# Thread blocks of a cluster begin and end together.
_TOGETHER_BYTES = 8 * 1024
# Thread blocks of the second kernel that find no room beside the first's start later by as much.
_LATE_BYTES = 40 * 1024


class _Down(NamedTuple):
    row_tiles: int
    splits: int
    cluster: int


class _Up(NamedTuple):
    row_tiles: int
    cluster: int


def takes_boxes(shape: LowRankShape, capability: tuple[int, int]) -> bool:
    """Whether the kernels that fetch boxes take the shape on a device.

    They take x and down only in rows at multiples of 16 bytes.
    """
    if capability != _HOPPER or shape.m > MAX_BOX_TOKENS or shape.sparse or shape.k % 8:
        return False
    shared = shared_bytes_of(capability)
    return any(_up_shared(shape, up, 2) <= shared for up in _up_options(shape))


def box_configs(
    shape: LowRankShape, num_sms: int, shared_bytes: int
) -> Iterator[LowRankCudaConfig]:
    """The best guess first, then others that differ; the shape is one that `takes_boxes`.

    Args:
        shape: the problem.
        num_sms: multiprocessors of the device.
        shared_bytes: shared memory that a thread block may use.
    """
    downs = list(_down_options(shape, num_sms))
    costs: dict[LowRankCudaConfig, float] = {}
    for up in _up_options(shape):
        if _up_shared(shape, up, 2) > shared_bytes:
            continue
        for down in downs:
            config = _config(shape, down, up, num_sms, shared_bytes)
            costs[config] = _cost(shape, config, num_sms, shared_bytes)
    found: set[tuple[int, _Up]] = set()
    of_down: Counter[int] = Counter()
    of_up: Counter[_Up] = Counter()
    for config in sorted(costs, key=costs.__getitem__):
        rows, up = config.down_row_tiles, _Up(config.up_row_tiles, config.up_boxes)
        if (rows, up) in found or _ALIKE in (of_down[rows], of_up[up]):
            continue
        found.add((rows, up))
        of_down[rows] += 1
        of_up[up] += 1
        yield config


def box_variants(
    config: LowRankCudaConfig, shape: LowRankShape, num_sms: int
) -> list[LowRankCudaConfig]:
    """The same division of the work, with weights asked for ahead of the rings: worth timing where
    the config is fast.

    Args:
        config: of the kernels; one that does not fetch boxes has no variants.
        shape: the problem.
        num_sms: multiprocessors of the device.
    """
    downs, ups = [0], [0]
    if config.down_boxes:
        down = _Down(config.down_row_tiles, config.splits, config.down_boxes)
        left = _down_stages(shape, down) - config.down_stages
        blocks = _ceil(shape.groups * shape.rank, _ROWS * down.row_tiles) * down.splits
        downs = ahead_choices(box_stage_bytes(down.row_tiles, 0), left, blocks, num_sms)
    if config.up_boxes:
        up = _Up(config.up_row_tiles, config.up_boxes)
        left = _up_stages(shape, up, num_sms) - config.up_stages
        ups = ahead_choices(box_stage_bytes(up.row_tiles, 0), left, config.up_blocks, num_sms)
    found = [replace(config, down_ahead=d, up_ahead=u) for d in downs for u in ups]
    return [variant for variant in found if variant != config]


def side_by_side(shape: LowRankShape, num_sms: int, shared_bytes: int) -> list[LowRankCudaConfig]:
    """Configs of both kernels' thread blocks on one multiprocessor, by way of smaller rings.

    What `box_configs` gives full rings where there is no room for both. With weights asked for
    ahead a ring has to hide the L2 cache only, and the second kernel asks while the first runs.

    Args:
        shape: the problem, one that `takes_boxes`.
        num_sms: multiprocessors of the device.
        shared_bytes: shared memory that a thread block may use.

    Returns:
        the best guess first; none where the first of `box_configs` leaves room as well.
    """
    if _needed(next(box_configs(shape, num_sms, shared_bytes)), shape) <= shared_bytes:
        return []
    found: dict[LowRankCudaConfig, float] = {}
    for up in _up_options(shape):
        if _up_shared(shape, up, 2) > shared_bytes:
            continue
        for down in _down_options(shape, num_sms):
            config = _config(shape, down, up, num_sms, shared_bytes)
            small = _with_small_rings(config, shape, shared_bytes)
            if small not in (None, config):
                varied = box_variants(small, shape, num_sms)
                found[varied[-1] if varied else small] = _cost(shape, small, num_sms, shared_bytes)
    return sorted(found, key=found.__getitem__)


def _with_small_rings(
    config: LowRankCudaConfig, shape: LowRankShape, shared_bytes: int
) -> LowRankCudaConfig | None:
    """With fewer stages, of the larger ring first, until both kernels find room; None if never."""
    down_stage = box_stage_bytes(config.down_row_tiles, shape.m)
    up_stage = box_stage_bytes(config.up_row_tiles, 0)
    while _needed(config, shape) > shared_bytes:
        down, up = config.down_stages, config.up_stages
        if down == up == _LEAST_STAGES:
            return None
        larger = down * down_stage >= up * up_stage
        if up == _LEAST_STAGES or (larger and down > _LEAST_STAGES):
            config = replace(config, down_stages=down - 1)
        else:
            config = replace(config, up_stages=up - 1)
    return config


def _needed(config: LowRankCudaConfig, shape: LowRankShape) -> int:
    """Shared memory for a thread block of each kernel."""
    return down_shared_bytes(config, shape.m) + up_shared_bytes(config, shape) + _RESERVED_BYTES


def gated_config(config: LowRankCudaConfig, shape: LowRankShape) -> LowRankCudaConfig | None:
    """The config where the second kernel computes gate and up rows of the same features together.

    Args:
        config: with boxes in the second kernel.
        shape: the problem; with two groups t of both is in shared memory.

    Returns:
        It with an even number of row tiles, and as many stages as there is room for; None if that
        is less than two.
    """
    tiles, cluster = config.up_row_tiles + config.up_row_tiles % 2, config.up_boxes
    stage = box_stage_bytes(tiles, 0) + _STAGE_BARRIERS
    ring = config.up_stages * (box_stage_bytes(config.up_row_tiles, 0) + _STAGE_BARRIERS)
    second = hidden_bytes(shape, cluster) if shape.groups == 2 else 0
    room = shared_bytes_of(_HOPPER) - second - _up_shared(shape, _Up(tiles, cluster), 0)
    if room < 2 * stage:
        return None
    return replace(
        config, up_row_tiles=tiles, up_stages=max(2, min(_MAX_STAGES, ring // stage, room // stage))
    )


def _down_options(shape: LowRankShape, num_sms: int) -> Iterator[_Down]:
    """Of each number of row tiles and thread blocks in a cluster, the best range of K.

    At most one thread block a multiprocessor, unless there are more row blocks than that.
    """
    for row_tiles in range(1, MAX_BOX_ROW_TILES + 1):
        blocks = _ceil(shape.groups * shape.rank, _ROWS * row_tiles)
        for cluster in _CLUSTERS:
            clusters = clusters_at_once(num_sms, cluster) // blocks
            if cluster > 1 and clusters == 0:  # some would wait for the first to leave
                continue
            most = min(_MAX_SPLITS, _ceil(shape.k, _CHUNK), max(1, clusters) * cluster)
            options = [
                _Down(row_tiles, splits, cluster) for splits in range(cluster, most + 1, cluster)
            ]
            yield from sorted(options, key=lambda down: _down_cost(shape, down, num_sms))[:1]


def _up_options(shape: LowRankShape) -> Iterator[_Up]:
    for row_tiles in range(1, MAX_BOX_ROW_TILES + 1):
        for cluster in _CLUSTERS:
            of_each = row_tiles * token_tiles(shape.m) // cluster
            if of_each and (cluster == 1 or shape.rank >= 2 * cluster * _CHUNK):
                yield _Up(row_tiles, cluster)


def _cost(shape: LowRankShape, config: LowRankCudaConfig, num_sms: int, shared_bytes: int) -> float:
    """For the busiest multiprocessor."""
    down = _Down(config.down_row_tiles, config.splits, config.down_boxes)
    up = _Up(config.up_row_tiles, config.up_boxes)
    late = 0 if _needed(config, shape) <= shared_bytes else _LATE_BYTES
    down_lumps = _lumps(config.down_stages, _down_stages(shape, down))
    up_lumps = _lumps(config.up_stages, _up_stages(shape, up, num_sms))
    return (
        _down_cost(shape, down, num_sms) * down_lumps
        + _up_cost(shape, up, num_sms) * up_lumps
        + late
    )


def _down_cost(shape: LowRankShape, down: _Down, num_sms: int) -> float:
    """With that of its sums, for the whole rank, in the second kernel."""
    rows = _ROWS * down.row_tiles
    clusters = _ceil(shape.groups * shape.rank, rows) * down.splits // down.cluster
    columns = _ceil(_ceil(shape.k, _CHUNK), down.splits) * _CHUNK
    moved = columns * max(2 * (rows + _L2_COST * shape.m), _STAGE_BYTES / BOX_COLUMNS)
    together = _CLUSTER_BYTES + _TOGETHER_BYTES if down.cluster > 1 else 0
    hidden = 4 * down.splits // down.cluster * shape.m * shape.rank
    return _ceil(clusters, clusters_at_once(num_sms, down.cluster)) * moved + together + hidden


def _up_cost(shape: LowRankShape, up: _Up, num_sms: int) -> float:
    """But for t, of which a cluster spares most: taken for one sum."""
    rows = _ROWS * up.row_tiles
    columns = _ceil(_ceil(shape.rank, _CHUNK), up.cluster) * _CHUNK
    least = _STAGE_BYTES if shape.m <= 8 else _STAGE_BYTES_OF_TWO_TOKEN_TILES
    turn = columns * max(2 * rows, least / BOX_COLUMNS) + _SUMS_BYTES
    turns = _turns(shape, up, num_sms)
    spared = 4 * shape.m * (shape.rank - columns)
    if up.cluster == 1:
        return turns * turn - spared
    return turns * (turn + _CLUSTER_BYTES) + _TOGETHER_BYTES - spared


def _lumps(stages: int, useful: int) -> float:
    return 1.0 if useful <= stages else 1 + _LUMPS_COST / (stages - 1)


def _turns(shape: LowRankShape, up: _Up, num_sms: int) -> int:
    return _ceil(_ceil(shape.n, _ROWS * up.row_tiles), clusters_at_once(num_sms, up.cluster))


def _down_stages(shape: LowRankShape, down: _Down) -> int:
    """Of a thread block, one after the other."""
    return _ceil(_ceil(_ceil(shape.k, _CHUNK), down.splits) * _CHUNK, BOX_COLUMNS)


def _up_stages(shape: LowRankShape, up: _Up, num_sms: int) -> int:
    columns = _ceil(_ceil(shape.rank, _CHUNK), up.cluster) * _CHUNK
    return _turns(shape, up, num_sms) * _ceil(columns, BOX_COLUMNS)


def _up_shared(shape: LowRankShape, up: _Up, stages: int) -> int:
    stage, hidden = box_stage_bytes(up.row_tiles, 0), hidden_bytes(shape, up.cluster)
    tiles = up.row_tiles * token_tiles(shape.m)
    return box_shared_bytes(stages, stage, hidden, tiles, up.cluster)


def _config(
    shape: LowRankShape, down: _Down, up: _Up, num_sms: int, shared_bytes: int
) -> LowRankCudaConfig:
    down_stage = box_stage_bytes(down.row_tiles, shape.m) + _STAGE_BARRIERS
    down_stages = _stages(_DOWN_RING_BYTES, down_stage, _down_stages(shape, down))
    tiles = down.row_tiles * token_tiles(shape.m)
    down_shared = box_shared_bytes(down_stages, down_stage, 0, tiles, down.cluster)
    # Thread blocks of both kernels side by side, if that leaves enough stages.
    up_stage = box_stage_bytes(up.row_tiles, 0) + _STAGE_BARRIERS
    useful = _up_stages(shape, up, num_sms)
    alone = shared_bytes - _up_shared(shape, up, 0)
    beside = alone - down_shared - _RESERVED_BYTES
    ring = min(_UP_RING_BYTES_ALONE, alone)
    if beside >= min(_STAGES_BESIDE, max(2, useful)) * up_stage:
        ring = min(_UP_RING_BYTES, beside)
    row_blocks = _ceil(shape.n, _ROWS * up.row_tiles)
    return LowRankCudaConfig(
        down_warps=BOX_WARPS,
        down_row_tiles=down.row_tiles,
        down_stages=down_stages,
        splits=down.splits,
        up_warps=BOX_WARPS,
        up_row_tiles=up.row_tiles,
        up_stages=_stages(ring, up_stage, useful),
        up_blocks=_ceil(row_blocks, _turns(shape, up, num_sms)) * up.cluster,
        down_boxes=down.cluster,
        up_boxes=up.cluster,
    )


def _stages(ring_bytes: int, stage_bytes: int, useful: int) -> int:
    return max(_LEAST_STAGES, min(_MAX_STAGES, useful, ring_bytes // stage_bytes))


def _ceil(size: int, part: int) -> int:
    return -(-size // part)
