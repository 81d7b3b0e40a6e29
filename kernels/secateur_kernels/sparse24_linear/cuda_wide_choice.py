"""Which config of the compiled kernel for warpgroups to use, and which are worth timing.

The estimate counts clocks of the busiest multiprocessor. It is no prediction of time, but orders
configs: `secateur tune` measures.
"""

from collections.abc import Iterator
from math import sqrt

from secateur_kernels.sparse24_linear.cuda_wide_config import (
    HALF_SHARED_BYTES,
    MOST_STEPS,
    SHARED_BYTES,
    TILES,
    Tile,
    WideConfig,
    groups_of,
)

MOST_CANDIDATES = 24

_HOPPER = (9, 0)
_SMS = 132
_UNIT = 64
_WEIGHT_BYTES = 72
"""Of a row and a step of 64 columns."""
_X_BYTES = 128
"""Of a token and a step."""
# Of one multiprocessor and clock: products with a sparse operand (dense-equivalent), bytes that
# shared memory takes or gives, bytes from the L2 cache and from memory.
_PRODUCTS = 4096
_SHARED = 128
_L2 = 30
_MEMORY = 18
# Clocks: to fill the ring and agree on a step, to start and end a tile, and to find out who adds up
# the shares of one.
_STEP_CLOCKS = 40
_TILE_CLOCKS = 1500
_TICKET_CLOCKS = 3000
# Two barriers over a cluster.
_CLUSTER_CLOCKS = 1400
# Below this many steps a share of a tile is not worth its reduction.
_LEAST_STEPS = 4
# Clusters that are worth a try: tiles along rows, tiles along tokens.
_CLUSTERS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2))
# Thread blocks of a cluster that split the steps of a tile.
_STEP_CLUSTERS = (2, 4, 8)
_MOST_STEPS_SPLIT = 4
"""Candidates with such clusters, beside those that are among the best anyway."""
# How many multiprocessors clusters of four reach depends on the chip; the default avoids them.
_LARGEST_DEFAULT_CLUSTER = 2


def default_config(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int] = _HOPPER
) -> WideConfig:
    """A good guess: the fewest clocks of the busiest multiprocessor.

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
        at most `MOST_CANDIDATES`: the best clusters that split steps, and of every tile that is
        worth it the best few.
    """
    first = default_config(m, n, k, num_sms or _SMS)
    tiles = _tiles(m, n)
    left = {tile: MOST_CANDIDATES // len(tiles) for tile in tiles}
    ranked = _ranked(m, n, k, num_sms or _SMS)
    split = [config for config in ranked if config.cluster_steps > 1][:_MOST_STEPS_SPLIT]
    found = dict.fromkeys([first, *split])
    for config in ranked:
        left[config.tile] -= 1
        if left[config.tile] >= 0 and len(found) < MOST_CANDIDATES:
            found[config] = None
    return list(found)


def _may_be_default(config: WideConfig) -> bool:
    """Larger clusters only where two share a multiprocessor, so that none waits for a place."""
    split = config.cluster_steps > 1 and config.tile.resident == 2
    return split or config.cluster <= _LARGEST_DEFAULT_CLUSTER


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
    steps = -(-k // _UNIT)
    found: dict[WideConfig, float] = {}
    for tile in _tiles(m, n):
        for cluster in _CLUSTERS:
            size = cluster[0] * cluster[1]
            # A cluster that is mostly beyond the problem shares nothing.
            if tile.rows * (cluster[0] - 1) >= n or tile.tokens * (cluster[1] - 1) >= m:
                continue
            groups = groups_of(tile, cluster, m, n)
            if groups * steps > MOST_STEPS:
                continue
            for clusters, waves in _divisions(groups, steps, _clusters(num_sms, size, tile)):
                config = WideConfig(
                    warpgroups=tile.warpgroups,
                    panels=tile.panels,
                    tokens=tile.tokens,
                    stages=_stages(tile),
                    cluster_rows=cluster[0],
                    cluster_tokens=cluster[1],
                    blocks=clusters * size,
                    waves=waves,
                    group=_group(tile, cluster, m, n, min(clusters, groups)),
                )
                found[config] = _clocks(config, m, n, steps, num_sms)
        for config in _with_steps_split(tile, m, n, steps, num_sms):
            found[config] = _clocks(config, m, n, steps, num_sms)
    return sorted(found, key=lambda config: found[config])


def _with_steps_split(tile: Tile, m: int, n: int, steps: int, num_sms: int) -> Iterator[WideConfig]:
    """Clusters that split the steps of a tile: where all tiles find a place at the same time."""
    tiles = groups_of(tile, (1, 1), m, n)
    if not tile.splits_steps:
        return
    for size in _STEP_CLUSTERS:
        if size * _LEAST_STEPS <= steps and tiles <= _clusters(num_sms, size, tile):
            yield WideConfig(
                warpgroups=tile.warpgroups,
                panels=tile.panels,
                tokens=tile.tokens,
                stages=_stages(tile),
                cluster_steps=size,
                blocks=tiles * size,
                waves=1,
                group=_group(tile, (1, 1), m, n, tiles),
            )


def _stages(tile: Tile) -> int:
    """Where two thread blocks can share a multiprocessor, the next kernel's may start early."""
    return tile.most_stages(HALF_SHARED_BYTES if tile.resident == 2 else SHARED_BYTES)


def _clusters(num_sms: int, size: int, tile: Tile) -> int:
    """Clusters that run at the same time, as a rule."""
    whole = num_sms // size
    return max(1, (whole - 1 if size > _LARGEST_DEFAULT_CLUSTER else whole) * tile.resident)


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


def _clocks(config: WideConfig, m: int, n: int, steps: int, num_sms: int) -> float:
    tile = config.tile
    groups = groups_of(tile, (config.cluster_rows, config.cluster_tokens), m, n)
    clusters = config.blocks // config.cluster
    # Thread blocks that share a multiprocessor share what it can do.
    share = -(-config.blocks // num_sms)
    step = _step_clocks(config, m) * share
    end = _TILE_CLOCKS + 8 * tile.floats / _SHARED
    if config.cluster_steps > 1:
        # Every thread block reads as much as it has itself, most of it from others.
        end += _CLUSTER_CLOCKS + 4 * tile.floats * share / _L2
        steps = -(-steps // config.cluster_steps)
    whole = min(config.waves * clusters, groups)
    clocks = -(-whole // clusters) * (steps * step + end)
    left = groups - whole
    if left == 0:
        return clocks
    sharers = min(clusters, left * steps)
    longest = -(-left * steps // sharers)
    clocks += longest * step + end
    if left % sharers:
        # Written once each, and read by the last to arrive.
        parts = -(-steps // longest) + (sharers % left != 0)
        clocks += _TICKET_CLOCKS + (1 + parts) * 4 * tile.floats / _L2
    return clocks


def _step_clocks(config: WideConfig, m: int) -> float:
    """Of 64 columns: the busiest of tensor cores, shared memory, L2 cache and memory."""
    tile = config.tile
    weight, x = tile.rows * _WEIGHT_BYTES, tile.tokens * _X_BYTES
    # Each panel's products read x anew, and the weight goes through registers.
    shared = 2 * weight + x + tile.warpgroups * tile.panels * x
    once = m <= tile.tokens * config.cluster_tokens
    return _STEP_CLOCKS + max(
        tile.floats * _UNIT / _PRODUCTS,
        shared / _SHARED,
        (weight / config.cluster_tokens + x / config.cluster_rows) / _L2,
        weight / config.cluster_tokens / _MEMORY if once else 0.0,
    )
