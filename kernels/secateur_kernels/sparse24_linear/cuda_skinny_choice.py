"""Which config of the compiled kernel for few tokens to use, and which are worth timing.

`estimated_us` orders them: `secateur tune` measures.
"""

from dataclasses import replace

from secateur_kernels.sparse24_linear.cuda_rates import ahead_choices, clusters_at_once
from secateur_kernels.sparse24_linear.cuda_skinny_config import (
    CLUSTERS,
    SkinnyConfig,
    Split,
    block_row_choices,
    grid,
    late_lead,
    most_blocks,
    splits,
    token_tiles,
)
from secateur_kernels.sparse24_linear.cuda_skinny_estimate import estimated_us

MOST_CANDIDATES = 20

_HOPPER = (9, 0)
_ALONE = 2
"""Candidates whose ring takes all of the shared memory."""
_UNIT_BYTES = 4608
_UNIT_ROWS = 64


def default_config(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int] = (8, 0)
) -> SkinnyConfig:
    """A good guess for 1 to 64 tokens: the lowest estimate.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        capability: of the device; clusters need 9.0.
    """
    return _ranked(m, n, k, num_sms, capability, _waves(capability))[0].config(2, m, capability)


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
        clusters, where x is read often both numbers of row tiles, and after the default the best of
        one thread block a multiprocessor with a ring that leaves room for no other.
    """
    if num_sms:
        ranked = _ranked(m, n, k, num_sms, capability, waves=2)
        # Of one thread block a multiprocessor first, where there is no room for two.
        ranked.sort(key=lambda split: split.blocks > num_sms * _waves(capability))
        # Two row tiles a warp, and four where that halves what is read of a large tile of x.
        row_tiles = (2,) if token_tiles(m) < 4 else (2, 4)
        chosen = [split.config(r, m, capability) for split in ranked for r in row_tiles]
        single = [split for split in ranked if split.blocks <= num_sms][:_ALONE]
        chosen[1:1] = [split.config(2, m, capability, alone=True) for split in single]
    else:
        chosen = [
            split.config(row_tiles, m, capability)
            for split in _splits_of_any_device(n, k, capability)
            for row_tiles in (2, 4)
        ]
    return list(dict.fromkeys(chosen))[:MOST_CANDIDATES]


def variants(
    config: SkinnyConfig, n: int, k: int, num_sms: int, capability: tuple[int, int]
) -> list[SkinnyConfig]:
    """The same division of the work with other moments: worth timing where the config is fast.

    Args:
        config: of the kernel.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        capability: of the device: without dependent launch there are none.
    """
    if capability != _HOPPER:
        return []
    row_blocks, steps = grid(config.block_rows, n, k)
    left = -(-row_blocks * steps // config.blocks) - config.stages
    step_bytes = config.block_rows // _UNIT_ROWS * _UNIT_BYTES
    found = [
        replace(config, lead=lead, ahead=ahead)
        for ahead in ahead_choices(step_bytes, left, config.blocks, num_sms)
        for lead in dict.fromkeys((0, late_lead(config.stages), config.stages))
    ]
    return [variant for variant in found if variant != config]


def _waves(capability: tuple[int, int]) -> int:
    """Thread blocks that share a multiprocessor, at most: it has room for so many."""
    return 2 if capability == _HOPPER else 1


def _ranked(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int], waves: int
) -> list[Split]:
    """Splits in the order of their estimates, the default first."""
    clusters = capability == _HOPPER
    found = [
        split
        for rows in block_row_choices(n)
        for wave in range(1, waves + 1)
        for split in splits(rows, n, k, num_sms * (2 * wave - 1) // 2, num_sms * wave, clusters)
        if _has_places(split, num_sms)
    ]

    def cost(split: Split) -> tuple[float, int]:
        config = split.config(2, m, capability)
        return estimated_us(config, m, n, k, num_sms), -split.block_rows

    return sorted(dict.fromkeys(found), key=cost)


def _has_places(split: Split, num_sms: int) -> bool:
    """Whether all clusters run at the same time, two thread blocks a multiprocessor."""
    room = 2 * clusters_at_once(num_sms, split.cluster)
    return split.cluster == 1 or split.blocks <= room * split.cluster


def _splits_of_any_device(n: int, k: int, capability: tuple[int, int]) -> list[Split]:
    found = []
    for rows in reversed(list(block_row_choices(n))):
        row_blocks, steps = grid(rows, n, k)
        found += [Split(rows, row_blocks * parts) for parts in (1, 4) if parts <= steps]
        if capability == _HOPPER:
            found += [Split(rows, row_blocks * c, c) for c in CLUSTERS if c <= steps]
    return [split for split in found if split.blocks <= most_blocks(split.block_rows, n, k)]
