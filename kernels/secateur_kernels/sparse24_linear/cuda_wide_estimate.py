"""How long a config of the compiled kernel for warpgroups takes, about.

Simple sums whose constants fit an H200, seven shapes of common models, 8 to 2048 tokens, weights
not in the L2 cache: times of the kernel whose last thread block of a tile keeps its own sums in
registers, at 16 to 256 tokens for five of the shapes, and of earlier versions elsewhere, less what
such shared tiles gained (0.4 microseconds, 25 for each MB of a tile's sums, 2.5 more where ranges
end within tiles). They order configs, and from 128 tokens on exceed the times of all alike, by up
to a half: `secateur tune` measures.
"""

from secateur_kernels.sparse24_linear.cuda_rates import (
    LATENCY_NS,
    MEMORY,
    START_NS,
)
from secateur_kernels.sparse24_linear.cuda_wide_config import WideConfig, groups_of

_UNIT = 64
_WEIGHT_BYTES = 72
"""Of a row and a step of 64 columns."""
_X_BYTES = 128
"""Of a token and a step."""
_FLOAT = 4
# A sparse product of 64 rows and 32 columns takes so long, and so long for each token: half as much
# again as without loads, because its operand comes through shared memory.
_PRODUCT_NS = 33.6
_PRODUCT_TOKEN_NS = 0.35
# Bytes a nanosecond that one multiprocessor reads from the L2 cache, and that reach it with what
# others of its cluster read. More than bulk copies of its own: who asks for the same at the same
# time is served together.
_L2 = 69.0
_DELIVERED = 83.0
# Thread blocks that share the weight wait for each other at each step; those that share x for
# longer, the more so the longer the step is.
_SHARED_WEIGHT_NS = 24.0
_SHARED_X = 1.18
# To end a tile: to turn to the next, and to write out its sums.
_TILE_NS = 680.0
_FLOAT_NS = 0.14
# Bytes a nanosecond of sums, from a neighbour in the cluster and through the workspace; and beside,
# two barriers of the cluster, or until the last thread block of a tile has found out that it is.
_NEIGHBOUR = 73.0
_WORKSPACE = 99.0
_BARRIERS_NS = 1100.0
_TICKET_NS = 900.0
# Equal ranges that end within tiles: some thread blocks begin anew in the middle and have two sums
# to hand over.
_UNEQUAL = 1.3
# Tiles given out by equal ranges are at different steps: so much of what they read is read by
# nobody else at about the same time.
_NOT_TOGETHER = 0.2
# Of the shorter of a multiprocessor's work and the memory's, what the longer does not hide.
_NOT_HIDDEN = 0.285


def estimated_us(config: WideConfig, m: int, n: int, k: int, num_sms: int) -> float:
    """Microseconds of x [m, k] by a weight [n, k].

    Args:
        config: of the kernel.
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
    """
    busiest = _busiest_ns(config, m, n, -(-k // _UNIT), num_sms)
    memory = _memory_bytes(config, m, n, k) / MEMORY
    return (START_NS + max(busiest, memory) + _NOT_HIDDEN * min(busiest, memory)) / 1000


def _busiest_ns(config: WideConfig, m: int, n: int, steps: int, num_sms: int) -> float:
    """What the busiest multiprocessor does."""
    groups = _groups(config, m, n)
    clusters = config.blocks // config.cluster
    # Thread blocks that share a multiprocessor share what it can do.
    share = -(-config.blocks // num_sms)
    step, sums = _step_ns(config, share), _FLOAT * config.tile.floats
    end = _TILE_NS + _FLOAT_NS * config.tile.floats * share
    whole, left = _given_out(config, groups)
    rounds = -(-whole // clusters)
    if config.cluster_steps > 1:
        # Every thread block reads as much as it has itself, most of it from others.
        together = _BARRIERS_NS + sums * share / _NEIGHBOUR
        return rounds * (-(-steps // config.cluster_steps) * step + end + together)
    busiest = rounds * (steps * step + end)
    if left == 0:
        return busiest
    sharers = min(clusters, left * steps)
    longest = -(-left * steps // sharers)
    unequal = _unequal(left, sharers)
    busiest += longest * step * (_UNEQUAL if unequal else 1.0) + end
    if left % sharers:
        # Written once each, and read by the last to arrive.
        parts = -(-steps // longest) + unequal
        busiest += _TICKET_NS + (1 + parts) * sums / _WORKSPACE
    return busiest


def _step_ns(config: WideConfig, share: int) -> float:
    """Of 64 columns: the busiest of tensor cores and what brings the bytes."""
    tile = config.tile
    weight, x = tile.rows * _WEIGHT_BYTES, tile.tokens * _X_BYTES
    products = tile.rows // 64 * 2 * (_PRODUCT_NS + _PRODUCT_TOKEN_NS * tile.tokens)
    own = weight / config.cluster_tokens + x / config.cluster_rows
    step = share * max(products, own / _L2, (weight + x) / _DELIVERED)
    if config.cluster_rows > 1:
        step *= _SHARED_X
    if config.cluster_tokens > 1:
        step += _SHARED_WEIGHT_NS
    return max(step, LATENCY_NS / config.stages)


def _memory_bytes(config: WideConfig, m: int, n: int, k: int) -> float:
    """What is read: of a wave each operand once; the next finds little in the L2 cache."""
    groups = _groups(config, m, n)
    clusters = min(config.blocks // config.cluster, groups)
    whole, left = _given_out(config, groups)
    row, token = _WEIGHT_BYTES / _UNIT * k, _X_BYTES / _UNIT * k
    rows = config.tile.rows * config.cluster_rows
    tokens = config.tile.tokens * config.cluster_tokens
    once = n * row + m * token
    # Of one wave: so many groups along rows by so many along tokens, step by step together.
    row_groups, token_groups = -(-n // rows), -(-m // tokens)
    tall = min(row_groups, max(min(config.group, clusters), -(-clusters // token_groups)))
    broad = min(token_groups, -(-clusters // tall))
    read = whole / clusters * (tall * rows * row + broad * tokens * token)
    read = max(read, once * whole / groups) + once * left / groups
    if _unequal(left, clusters):
        read += _NOT_TOGETHER * left * (rows * row + tokens * token)
    return read


def _groups(config: WideConfig, m: int, n: int) -> int:
    return groups_of(config.tile, (config.cluster_rows, config.cluster_tokens), m, n)


def _given_out(config: WideConfig, groups: int) -> tuple[int, int]:
    """Groups that clusters compute whole, and those that are left."""
    whole = min(config.waves * (config.blocks // config.cluster), groups)
    return whole, groups - whole


def _unequal(left: int, sharers: int) -> bool:
    """Whether equal ranges end within tiles: neither whole tiles nor whole parts of one."""
    return left > 0 and left % sharers != 0 and sharers % left != 0
