"""Which config of the compiled kernel for few tokens to use, and which are worth timing.

The estimate counts bytes that pass through the busiest multiprocessor. It is no prediction of time,
but orders configs: `secateur tune` measures.
"""

from secateur_kernels.sparse24_linear.cuda_skinny_config import (
    CLUSTERS,
    SkinnyConfig,
    Split,
    block_row_choices,
    grid,
    most_blocks,
    slot_floats,
    splits,
    stage_bytes,
    token_tiles,
)

MOST_CANDIDATES = 24

# A multiprocessor may get this much more than its share of the memory's bandwidth.
_OVER_SHARE = 1.05
# What a reduction costs, in bytes that could be streamed meanwhile (32 a nanosecond on an H200):
# 0.8 us for two barriers over a cluster, 2 us for a ticket and a round trip through the L2 cache.
_CLUSTER_COST = 26_000
_TICKET_COST = 64_000


def default_config(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int] = (8, 0)
) -> SkinnyConfig:
    """A good guess for 1 to 64 tokens: the least to move for the busiest multiprocessor.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        capability: of the device; clusters need 9.0.
    """
    return _ranked(m, n, k, num_sms, capability, waves=1)[0].config(2, m, capability)


def candidate_configs(
    m: int, n: int, k: int, num_sms: int = 0, capability: tuple[int, int] = (8, 0)
) -> list[SkinnyConfig]:
    """What is worth timing for a shape; the first is the default where `num_sms` is known.

    Args:
        m: tokens, 1 to 64.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device; 0 leaves out what depends on it.
        capability: of the device; clusters need 9.0.

    Returns:
        at most `MOST_CANDIDATES`; one and two thread blocks a multiprocessor, with and without
        clusters, where x is read often both numbers of row tiles, and the default with a ring that
        leaves room for no other thread block.
    """
    if num_sms:
        ranked = _ranked(m, n, k, num_sms, capability, waves=2)
        # Two row tiles a warp, and four where that halves what is read of a large tile of x.
        row_tiles = (2,) if token_tiles(m) < 4 else (2, 4)
        chosen = [split.config(r, m, capability) for split in ranked for r in row_tiles]
        chosen.insert(1, ranked[0].config(2, m, capability, alone=True))
    else:
        chosen = [
            split.config(row_tiles, m, capability)
            for split in _splits_of_any_device(n, k, capability)
            for row_tiles in (2, 4)
        ]
    return list(dict.fromkeys(chosen))[:MOST_CANDIDATES]


def _ranked(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int], waves: int
) -> list[Split]:
    """Splits in the order of their estimates, the default first."""

    def cost(split: Split) -> tuple[bool, float, int]:
        second = split.blocks > num_sms
        return second, _bytes_of_the_busiest(split, m, n, k, num_sms), -split.block_rows

    clusters = capability == (9, 0)
    found = [
        split
        for rows in block_row_choices(n)
        for wave in range(1, waves + 1)
        for split in splits(rows, n, k, num_sms * (2 * wave - 1) // 2, num_sms * wave, clusters)
    ]
    ordered = sorted(dict.fromkeys(found), key=cost)
    if waves == 1:
        return ordered
    # Two thread blocks a multiprocessor, taken in turns with one.
    one = [split for split in ordered if split.blocks <= num_sms]
    two = [split for split in ordered if split.blocks > num_sms]
    turns = [split for pair in zip(one, two, strict=False) for split in pair]
    return list(dict.fromkeys([*turns, *one, *two]))


def _splits_of_any_device(n: int, k: int, capability: tuple[int, int]) -> list[Split]:
    found = []
    for rows in reversed(list(block_row_choices(n))):
        row_blocks, steps = grid(rows, n, k)
        found += [Split(rows, row_blocks * parts) for parts in (1, 4) if parts <= steps]
        if capability == (9, 0):
            found += [Split(rows, row_blocks * c, c) for c in CLUSTERS if c <= steps]
    return [split for split in found if split.blocks <= most_blocks(split.block_rows, n, k)]


def _bytes_of_the_busiest(split: Split, m: int, n: int, k: int, num_sms: int) -> float:
    """What the busiest multiprocessor moves: its stages, and what the reduction costs."""
    row_blocks, steps = grid(split.block_rows, n, k)
    units = row_blocks * steps
    whole_parts = split.blocks % row_blocks == 0
    longest = -(
        -(steps if whole_parts else units) // (split.blocks // (row_blocks if whole_parts else 1))
    )
    on_one = -(-split.blocks // num_sms)
    stage = stage_bytes(split.block_rows, m)
    streamed = max(on_one * longest * stage / _OVER_SHARE, units * stage / num_sms)
    if split.cluster > 1:
        return streamed + _CLUSTER_COST + 4 * slot_floats(split.block_rows, m)
    if row_blocks % split.blocks == 0:
        return streamed
    partial_sums = (1 if whole_parts else 2) * 4 * slot_floats(split.block_rows, m)
    return streamed + _TICKET_COST + partial_sums
