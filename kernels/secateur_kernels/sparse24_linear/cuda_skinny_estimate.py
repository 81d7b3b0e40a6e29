"""How long a config of the compiled kernel for few tokens takes, about.

Simple sums whose constants fit an H200, seven shapes of common models, 1 to 32 tokens, weights not
in the L2 cache: times of the kernel that lets the next one start behind its first stages, at 1 and
16 tokens for five of the shapes, and of earlier versions elsewhere, less what was gained since. A
late lead with clusters was measured before their sums became 0.6 microseconds faster; both together
are an expectation. The sums order configs: `secateur tune` measures.
"""

from secateur_kernels.sparse24_linear.cuda_rates import (
    LATENCY_NS,
    MEMORY,
    START_NS,
    clusters_at_once,
)
from secateur_kernels.sparse24_linear.cuda_skinny_config import (
    SkinnyConfig,
    exchange_bytes,
    grid,
    shared_bytes,
    slot_floats,
    stage_bytes,
    token_tiles,
)

_HOPPER = (9, 0)
_ROW_BYTES = 72
"""Of the weight, a step of 64 columns."""
_X_BYTES = 128
"""Of a token and a step."""
# Of one multiprocessor, a nanosecond: bytes from outside, twice its share of the memory's; bytes
# that shared memory takes or gives; bytes from a neighbour's shared memory and from the L2 cache.
_INTAKE = 79.0
_SHARED = 230.0
_NEIGHBOUR = 30.0
_L2 = 40.0
# What a warp spends on a step that nothing hides, and on each product of 16 rows, 8 tokens and 32
# columns with what comes before and after.
_STEP_NS = 66.0
_PRODUCT_NS = 4.5
# Until the last thread block of a row block has found out that it is, and starts to add up, before
# that went the shorter way of the other kernels; and what it costs to turn to another row block.
_TICKET_NS = 5600.0
_ANEW_NS = 1500.0
# What a kernel loses that begins with the end of the one in front: the first weights are not there.
_LATE_NS = 2100.0
# Of the shorter of a multiprocessor's work and the memory's, what the longer does not hide.
_NOT_HIDDEN = 0.24


def estimated_us(config: SkinnyConfig, m: int, n: int, k: int, num_sms: int) -> float:
    """Microseconds of x [m, k] by a weight [n, k].

    Args:
        config: of the kernel.
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
    """
    row_blocks, steps = grid(config.block_rows, n, k)
    whole_parts = config.blocks % row_blocks == 0
    parts = config.blocks // row_blocks
    longest = -(-steps // parts) if whole_parts else -(-row_blocks * steps // config.blocks)
    busiest = longest * _step_ns(config, m, num_sms)
    sums = 4 * slot_floats(config.block_rows, m)
    if config.cluster > 1:
        busiest += sums / _NEIGHBOUR
    elif not whole_parts:
        busiest += -(-longest // steps) * _ANEW_NS
        # Written twice, and read once for each range of the row block.
        ranges = -(-steps // longest) + 1
        busiest += _TICKET_NS + (2 + ranges) * sums / _L2
    elif parts > 1:
        busiest += _TICKET_NS + (1 + parts) * sums / _L2
    memory = n * k * _ROW_BYTES / 64 / MEMORY
    rest = START_NS + _late_ns(config, m, num_sms)
    return (rest + max(busiest, memory) + _NOT_HIDDEN * min(busiest, memory)) / 1000


def _step_ns(config: SkinnyConfig, m: int, num_sms: int) -> float:
    """Of 64 columns: the busier of shared memory and what brings the bytes, and its products."""
    weight, x = config.block_rows * _ROW_BYTES, token_tiles(m) * 8 * _X_BYTES
    # The weight and x are written once; x is read by every warp.
    shared = 2 * weight + x + config.warps * x
    busy = max(shared / _SHARED, (weight + x) / _INTAKE)
    on_one = -(-config.blocks // num_sms)
    products = config.row_tiles * token_tiles(m) * 2
    step = on_one * busy + _STEP_NS + products * _PRODUCT_NS
    return max(step, LATENCY_NS / config.stages)


def _late_ns(config: SkinnyConfig, m: int, num_sms: int) -> float:
    """Where the clusters of all kernels that run do not find a place, some begin late."""
    if config.cluster <= 2:
        return 0.0
    room = clusters_at_once(num_sms, config.cluster)
    exchange = exchange_bytes(config.warps, config.row_tiles, m, config.cluster)
    used = config.stages * stage_bytes(config.block_rows, m) + exchange
    if used <= shared_bytes(_HOPPER):
        room *= 2
    # Without a lead a third is there before the first has ended.
    kernels = 2 if config.lead else 3
    return _LATE_NS if kernels * config.blocks > room * config.cluster else 0.0
