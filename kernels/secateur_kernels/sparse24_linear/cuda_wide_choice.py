"""Which config of the compiled kernel for warpgroups to use, and which are worth timing.

`estimated_us` orders them: `secateur tune` measures.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt

from secateur_kernels.sparse24_linear.cuda_rates import ahead_choices, clusters_at_once
from secateur_kernels.sparse24_linear.cuda_wide_config import (
    HALF_SHARED_BYTES,
    MOST_STEPS,
    SHARED_BYTES,
    TILES,
    Tile,
    WideConfig,
    groups_of,
)
from secateur_kernels.sparse24_linear.cuda_wide_estimate import estimated_us

MOST_CANDIDATES = 16

_HOPPER = (9, 0)
_SMS = 132
_UNIT = 64
_WEIGHT_BYTES = 72
"""Of a row and a step of 64 columns."""
_X_BYTES = 128
"""Of a token and a step."""
# Below this many steps a share of a tile is not worth its reduction.
_LEAST_STEPS = 4
# Clusters that are worth a try: tiles along rows, tiles along tokens.
_CLUSTERS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2))
# Thread blocks of a cluster that split the steps of a tile.
_STEP_CLUSTERS = (2, 4, 8)
_LARGEST_CLUSTER = 8
_MOST_OF_A_KIND = 2
"""Candidates."""
_MOST_BOUND_BY_MEMORY = 256
"""Tokens, about: beyond, weights are read far faster than they are multiplied with."""
# How many multiprocessors clusters of four reach depends on the chip; the default avoids them.
_LARGEST_DEFAULT_CLUSTER = 2


def default_config(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int] = _HOPPER
) -> WideConfig:
    """A good guess: the lowest estimate.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        capability: of the device: there is one only.
    """
    ranked = _ranked(m, n, k, num_sms)
    return next(config for config in ranked if _may_be_default(config))


def candidate_configs(
    m: int, n: int, k: int, num_sms: int = 0, capability: tuple[int, int] = _HOPPER
) -> list[WideConfig]:
    """What is worth timing for a shape, the default first.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device; 0 stands for 132.
        capability: of the device: there is one only.

    Returns:
        at most `MOST_CANDIDATES`: the default, and by their estimates of every kind (tile, ring
        and cluster) the best few: what an estimate is wrong about it is wrong about for all of a
        kind.
    """
    ranked = _ranked(m, n, k, num_sms or _SMS)
    first = next(config for config in ranked if _may_be_default(config))
    seen: Counter[tuple[object, ...]] = Counter()
    found = [first]
    for config in ranked:
        seen[_kind(config)] += 1
        if config != first and seen[_kind(config)] <= _MOST_OF_A_KIND:
            found.append(config)
    return found[:MOST_CANDIDATES]


def variants(config: WideConfig, m: int, n: int, k: int, num_sms: int) -> list[WideConfig]:
    """The same division of the work with other moments: worth timing where the config is fast.

    Args:
        config: of the kernel.
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
    """
    steps = -(-k // _UNIT)
    groups = groups_of(config.tile, (config.cluster_rows, config.cluster_tokens), m, n)
    clusters = config.blocks // config.cluster
    # Of the first tile that a thread block works on.
    first = -(-groups * steps // clusters) if config.waves == 0 else steps
    left = -(-min(first, steps) // config.cluster_steps) - config.stages
    step_bytes = config.tile.rows * _WEIGHT_BYTES // config.cluster_tokens
    aheads = ahead_choices(step_bytes, left, config.blocks, num_sms)
    found = [
        replace(config, late=late, ahead=ahead)
        for ahead in (aheads if m <= _MOST_BOUND_BY_MEMORY else [0])
        for late in (False, True)
    ]
    return [variant for variant in found if variant != config]


def _kind(config: WideConfig) -> tuple[object, ...]:
    clusters = (config.cluster_rows, config.cluster_tokens, config.cluster_steps)
    return config.tile, config.stages, clusters


def _may_be_default(config: WideConfig) -> bool:
    """Larger clusters only where two share a multiprocessor, so that none waits for a place."""
    return config.cluster <= _LARGEST_DEFAULT_CLUSTER or (
        config.tile.shared_bytes(config.stages) <= HALF_SHARED_BYTES and config.tile.resident == 2
    )


def _tiles(m: int, n: int) -> list[Tile]:
    """Those that are neither mostly beyond the problem, nor far too small for it."""
    least = min(tile.rows for tile in TILES)
    enough = min((tile.tokens for tile in TILES if tile.tokens >= m), default=0)
    most = enough or TILES[-1].tokens
    fewest = most // 4 if m <= 2 * most else most // 2
    return [
        tile
        for tile in TILES
        if fewest <= tile.tokens <= most and (tile.rows < n + _UNIT or tile.rows == least)
    ]


def _ranked(m: int, n: int, k: int, num_sms: int) -> list[WideConfig]:
    found = [
        config
        for tile in _tiles(m, n)
        for ring in _rings(tile)
        for config in (
            *_with_operands_shared(tile, ring, m, n, k, num_sms),
            *_with_steps_split(tile, ring, m, n, k, num_sms),
        )
    ]
    return sorted(dict.fromkeys(found), key=lambda config: estimated_us(config, m, n, k, num_sms))


@dataclass(frozen=True)
class _Ring:
    stages: int
    resident: int
    """Thread blocks that share a multiprocessor."""


def _rings(tile: Tile) -> list[_Ring]:
    """One that leaves room for a second thread block, which may be the next kernel's, and all."""
    alone = _Ring(tile.most_stages(SHARED_BYTES), 1)
    beside = _Ring(tile.most_stages(HALF_SHARED_BYTES), 2)
    return [beside, alone] if tile.resident == 2 else [alone]


def _with_operands_shared(
    tile: Tile, ring: _Ring, m: int, n: int, k: int, num_sms: int
) -> Iterator[WideConfig]:
    """Thread blocks by themselves, and clusters that fetch the weight or x together."""
    steps = -(-k // _UNIT)
    for cluster in _CLUSTERS:
        size = cluster[0] * cluster[1]
        # A cluster that is mostly beyond the problem shares nothing.
        if tile.rows * (cluster[0] - 1) >= n or tile.tokens * (cluster[1] - 1) >= m:
            continue
        groups = groups_of(tile, cluster, m, n)
        if groups * steps > MOST_STEPS:
            continue
        at_once = clusters_at_once(num_sms, size) * ring.resident
        for clusters, waves in _divisions(groups, steps, at_once):
            yield WideConfig(
                warpgroups=tile.warpgroups,
                panels=tile.panels,
                tokens=tile.tokens,
                stages=ring.stages,
                cluster_rows=cluster[0],
                cluster_tokens=cluster[1],
                blocks=clusters * size,
                waves=waves,
                group=_group(tile, cluster, m, n, min(clusters, groups)),
            )


def _with_steps_split(
    tile: Tile, ring: _Ring, m: int, n: int, k: int, num_sms: int
) -> Iterator[WideConfig]:
    """Clusters that split the steps of a tile: where all tiles find a place at the same time."""
    if not tile.splits_steps:
        return
    for rows, tokens in _CLUSTERS:
        if tile.rows * (rows - 1) >= n or tile.tokens * (tokens - 1) >= m:
            continue
        groups = groups_of(tile, (rows, tokens), m, n)
        for parts in _STEP_CLUSTERS:
            size = rows * tokens * parts
            at_once = clusters_at_once(num_sms, size) * ring.resident
            fits = size <= _LARGEST_CLUSTER and parts * _LEAST_STEPS * _UNIT <= k
            if fits and groups <= at_once:
                yield WideConfig(
                    warpgroups=tile.warpgroups,
                    panels=tile.panels,
                    tokens=tile.tokens,
                    stages=ring.stages,
                    cluster_rows=rows,
                    cluster_tokens=tokens,
                    cluster_steps=parts,
                    blocks=groups * size,
                    waves=1,
                    group=_group(tile, (rows, tokens), m, n, groups),
                )


def _divisions(groups: int, steps: int, at_once: int) -> Iterator[tuple[int, int]]:
    """(clusters, waves): whole groups, whole parts of K, and equal ranges over all."""
    clusters = min(groups, at_once)
    yield clusters, -(-groups // clusters)
    if groups > at_once:
        if groups % at_once:
            # What the last wave leaves; and that together with the wave before.
            yield at_once, groups // at_once
            yield at_once, groups // at_once - 1
        return
    for parts in dict.fromkeys((2, 3, 4, at_once // groups)):
        if 1 < parts <= steps // _LEAST_STEPS and parts * groups <= at_once:
            yield parts * groups, 0
    if groups < at_once <= groups * steps // _LEAST_STEPS:
        yield at_once, 0


def _group(tile: Tile, cluster: tuple[int, int], m: int, n: int, at_once: int) -> int:
    """Groups along rows that, with as many along tokens as are computed at once, read the least."""
    rows, tokens = tile.rows * cluster[0], tile.tokens * cluster[1]
    ratio = tokens * _X_BYTES / (rows * _WEIGHT_BYTES)
    wanted = max(1, round(sqrt(at_once * ratio)))
    row_groups, token_groups = -(-n // rows), -(-m // tokens)
    # Where there are too few along tokens, more along rows.
    return min(row_groups, max(wanted, -(-at_once // token_groups)))
