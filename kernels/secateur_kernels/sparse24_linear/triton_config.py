"""How the Triton kernel of the 2:4 linear cuts its work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sparse24TritonConfig:
    """A tile of the weight and a block of tokens for each program."""

    block_m: int
    """Tokens: 16, 32, 64 or 128."""
    block_n: int
    """Rows of the weight, a multiple of 64."""
    block_k: int
    """Columns of the weight in one stage of the ring, a multiple of 64."""
    split_k: int
    """Into how many ranges K is split, at most."""
    num_warps: int
    num_stages: int
    """Of the ring in shared memory."""
    group_m: int = 8
    """Blocks of tokens that follow each other on the same rows, which are then in the cache."""

    def __str__(self) -> str:
        return (
            f"tile {self.block_m} tokens x {self.block_n} rows x {self.block_k} columns, "
            f"K in {self.split_k}, {self.num_warps} warps, {self.num_stages} stages, "
            f"groups of {self.group_m}"
        )


@dataclass(frozen=True)
class Tile:
    """What the kernel is compiled for."""

    tokens: int
    rows: int
    columns: int
    warps: int
    stages: int
    resident: int
    """Programs that fit a multiprocessor at once, by registers and shared memory."""


# Compiled for sm_80 and sm_90 without spills, and at most 84 KB of shared memory: sm_86 and sm_89
# can run them too.
TILES = (
    Tile(16, 64, 128, 4, 4, 4),
    Tile(16, 128, 128, 4, 3, 4),
    Tile(32, 128, 64, 4, 4, 3),
    Tile(64, 64, 64, 4, 4, 4),
    Tile(64, 128, 64, 4, 4, 3),
    Tile(128, 128, 64, 8, 3, 1),
)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)

# Of the cost model, for each multiprocessor: bytes that must be under way to keep the memory busy,
# bytes that it could read while a ring fills, and while a second kernel starts (0.7 and 1.5 us).
_UNDER_WAY = 40 * 1024
_FILL_BYTES = 22 * 1024
_LAUNCH_BYTES = 48 * 1024
# The cache is faster than memory.
_CACHED = 0.6


def splits_groups(block_m: int, capability_major: int) -> bool:
    """Whether the tile keeps the columns of a thread together, see `triton_unpack.column_order`.

    On Hopper that spares the weights the way through shared memory, but copies x in pieces of 4
    bytes: it pays for few tokens.
    """
    return capability_major == 9 and block_m <= 32


def default_config(m: int, n: int, k: int, num_sms: int) -> Sparse24TritonConfig:
    """The config for x [m, k] and a weight [n, k] that a model of the traffic likes best."""
    return _ranked(m, n, k, num_sms)[0]


def candidate_configs(m: int, n: int, k: int) -> list[Sparse24TritonConfig]:
    """At most 8 configs that are worth timing: of every tile that fits m its best splits of K."""
    tiles = _tiles_for(m)
    # 132 multiprocessors stand for a large GPU: the ranking only decides what is tried.
    ranked = _ranked(m, n, k, 132)
    chosen: list[Sparse24TritonConfig] = []
    for tile in tiles:
        chosen += [config for config in ranked if _tile_of(config) == tile][: 8 // len(tiles)]
    return chosen


def _tile_of(config: Sparse24TritonConfig) -> Tile:
    sizes = (config.block_m, config.block_n, config.block_k)
    return next(tile for tile in TILES if (tile.tokens, tile.rows, tile.columns) == sizes)


def _tiles_for(m: int) -> list[Tile]:
    """Tiles of the smallest block that holds all tokens, or of the two largest."""
    fitting = [tile.tokens for tile in TILES if tile.tokens >= m]
    wanted = {min(fitting)} if fitting else {64, 128}
    return [tile for tile in TILES if tile.tokens in wanted]


def _ranked(m: int, n: int, k: int, num_sms: int) -> list[Sparse24TritonConfig]:
    costs = {
        Sparse24TritonConfig(
            tile.tokens, tile.rows, tile.columns, split, tile.warps, tile.stages
        ): _cost(tile, split, m, n, k, max(num_sms, 1))
        for tile in _tiles_for(m)
        for split in _SPLITS
        # Partial sums are to stay fewer bytes than the weights: both a row of the weight.
        if split == 1 or (split * tile.columns <= k and 8 * split * m <= k)
    }
    return sorted(costs, key=lambda config: costs[config])


def _cost(tile: Tile, split: int, m: int, n: int, k: int, num_sms: int) -> float:
    """Bytes to move, counting time that is lost as bytes. A model, not a measurement."""
    programs = _ceil(m, tile.tokens) * _ceil(n, tile.rows) * split
    steps = _ceil(_ceil(k, tile.columns), split)
    stage = 1.125 * tile.rows * tile.columns
    inputs = 2 * min(m, tile.tokens) * tile.columns
    program = steps * (stage + _CACHED * inputs)
    slots = num_sms * tile.resident
    full, rest = divmod(programs, slots)
    # Too few programs, or the last few of many, leave the memory idle part of the time.
    busy = min(1.0, rest * (tile.stages - 1) * stage / (num_sms * _UNDER_WAY))
    moved = full * slots * program + (rest * program / busy if rest else 0.0)
    waves = full + (rest > 0)
    partials = 0.0
    if split > 1:
        partials = _LAUNCH_BYTES * num_sms + _CACHED * 8 * split * m * n
    return moved + waves * _FILL_BYTES * num_sms + partials


def _ceil(size: int, part: int) -> int:
    return -(-size // part)
