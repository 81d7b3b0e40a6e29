"""Which config of the compiled kernel for many tokens to use, and which are worth timing.

The estimate counts clocks of the busiest multiprocessor. It is no prediction of time, but orders
configs: `secateur tune` measures.
"""

from collections.abc import Iterator
from math import sqrt

from secateur_kernels.sparse24_linear.cuda_tiles_config import (
    TILES,
    Tile,
    TilesConfig,
    occupancy,
    tile_count,
)

MOST_CANDIDATES = 16

_UNIT = 64
_WEIGHT_BYTES = 72
"""Of a row and a step of 64 columns."""
_X_BYTES = 128
"""Of a token and a step."""
# Of one multiprocessor and clock: products with a sparse operand (dense-equivalent), bytes that
# shared memory takes or gives, bytes from the L2 cache.
_PRODUCTS = {(8, 0): 2048, (9, 0): 2048}
_FEWER_PRODUCTS = 1024
_SHARED_BYTES = 128
_L2_BYTES = 47
# Clocks: to start and end a tile, and to agree on who adds up the shares of one.
_TILE_CLOCKS = 1500
_TICKET_CLOCKS = 3000
# Fewer warps leave the tensor cores idle in between.
_ENOUGH_WARPS = 8
_FEW_WARPS_COST = 1.15
# Below this many steps a share of a tile is not worth its reduction.
_LEAST_STEPS = 4


def default_config(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int] = (8, 6)
) -> TilesConfig:
    """A good guess: the fewest clocks of the busiest multiprocessor.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        capability: of the device; the default has the least shared memory.
    """
    return _ranked(m, n, k, num_sms, capability)[0]


def candidate_configs(
    m: int, n: int, k: int, num_sms: int = 0, capability: tuple[int, int] = (8, 6)
) -> list[TilesConfig]:
    """What is worth timing for a shape, best guess first; without `num_sms` that of a 108th.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device; 0 stands for 108.
        capability: of the device.

    Returns:
        at most `MOST_CANDIDATES`, of every tile some.
    """
    ranked = _ranked(m, n, k, num_sms or 108, capability)
    places: dict[tuple[int, int], int] = {}
    kept = []
    for config in ranked:
        tile = (config.rows, config.tokens)
        places[tile] = places.get(tile, 0) + 1
        if places[tile] <= MOST_CANDIDATES // len(TILES):
            kept.append(config)
    return kept


def _ranked(m: int, n: int, k: int, num_sms: int, capability: tuple[int, int]) -> list[TilesConfig]:
    steps = -(-k // _UNIT)
    found: dict[TilesConfig, float] = {}
    for tile in TILES:
        resident, stages = occupancy(tile, capability)
        tiles = tile_count(tile, m, n)
        for blocks, waves in _divisions(tiles, steps, num_sms * resident):
            config = TilesConfig(
                rows=tile.rows,
                tokens=tile.tokens,
                stages=stages,
                blocks=blocks,
                waves=waves,
                group=_group(tile, m, n, min(blocks, tiles)),
            )
            found[config] = _clocks(config, tiles, steps, num_sms, capability)
    return sorted(found, key=lambda config: found[config])


def _divisions(tiles: int, steps: int, resident: int) -> Iterator[tuple[int, int]]:
    """(blocks, waves) for so many thread blocks at once."""
    blocks = min(tiles, resident)
    yield blocks, -(-tiles // blocks)
    if tiles > resident:
        yield tiles, 1
        if tiles % resident:
            # What the last wave leaves; and that together with the wave before.
            yield resident, tiles // resident
            yield resident, tiles // resident - 1
        return
    for parts in dict.fromkeys((2, 3, 4, resident // tiles)):
        if 1 < parts <= steps // _LEAST_STEPS and parts * tiles <= resident:
            yield parts * tiles, 0
    if tiles < resident <= tiles * steps // _LEAST_STEPS:
        yield resident, 0


def _group(tile: Tile, m: int, n: int, at_once: int) -> int:
    """Row blocks that together with as many token blocks as are computed at once read the least."""
    ratio = tile.tokens * _X_BYTES / (tile.rows * _WEIGHT_BYTES)
    wanted = max(1, round(sqrt(at_once * ratio)))
    row_blocks, token_blocks = -(-n // tile.rows), -(-m // tile.tokens)
    # Where there are too few blocks of tokens, more of rows.
    return min(row_blocks, max(wanted, -(-at_once // token_blocks)))


def _clocks(
    config: TilesConfig, tiles: int, steps: int, num_sms: int, capability: tuple[int, int]
) -> float:
    tile = config.tile
    resident, _ = occupancy(tile, capability)
    step = _step_clocks(tile, capability)
    at_once = min(config.blocks, num_sms * resident)
    if -(-at_once // num_sms) * tile.warps < _ENOUGH_WARPS:
        step *= _FEW_WARPS_COST
    whole = min(config.waves * config.blocks, tiles)
    clocks = -(-whole // num_sms) * (steps * step + _TILE_CLOCKS)
    left = tiles - whole
    if left == 0:
        return clocks
    sharers = min(config.blocks, left * steps)
    longest = -(-left * steps // sharers)
    parts = -(-steps // longest) + (sharers % left != 0)
    clocks += -(-sharers // num_sms) * longest * step + _TILE_CLOCKS
    if left % sharers:
        # Written once each, and read by the last to arrive.
        clocks += _TICKET_CLOCKS + (1 + parts) * 4 * tile.floats / _L2_BYTES
    return clocks


def _step_clocks(tile: Tile, capability: tuple[int, int]) -> float:
    """Of 64 columns: the busiest of tensor cores, shared memory and L2 cache."""
    streamed = tile.rows * _WEIGHT_BYTES + tile.tokens * _X_BYTES
    # A warp reads 64 rows of the weight and its tokens.
    read = tile.warps * 64 * _WEIGHT_BYTES + tile.warps * _warp_tokens(tile) * _X_BYTES
    products = _PRODUCTS.get(capability, _FEWER_PRODUCTS)
    return max(
        tile.floats * _UNIT / products,
        (streamed + read) / _SHARED_BYTES,
        streamed / _L2_BYTES,
    )


def _warp_tokens(tile: Tile) -> int:
    return tile.tokens * (tile.rows // 64) // tile.warps
