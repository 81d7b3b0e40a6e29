"""How the Triton kernels of the low-rank linear cut their work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LowRankTritonConfig:
    """Blocks of the two products t = x @ down.T and t @ up.T."""

    block_m: int
    """Tokens: 16, 32 or 64."""
    block_n: int
    """Features of y for each program of the second product."""
    block_rank: int
    """Rows of down for each program of the first product."""
    block_k: int
    """A step of the first product's sum."""
    step_rank: int
    """A step of the second product's sum."""
    split_k: int
    """Into how many ranges K is split. Unless `cut_first`, one of `FUSED_SPLITS`."""
    cut_first: bool
    """A small launch between the two adds the ranges and cuts t into pieces, instead of every
    program of the second product: pays for many tokens or a high rank."""
    num_warps: int = 4
    num_stages: int = 3

    def __str__(self) -> str:
        return (
            f"{self.block_m} tokens; down {self.block_rank} rows x {self.block_k} columns, "
            f"K in {self.split_k}; up {self.block_n} rows x {self.step_rank} ranks"
            f"{', t cut first' if self.cut_first else ''}; "
            f"{self.num_warps} warps, {self.num_stages} stages"
        )


@dataclass(frozen=True)
class DownTile:
    """What the first product is compiled for."""

    tokens: int
    ranks: int
    columns: int
    stages: int


@dataclass(frozen=True)
class UpTile:
    """What the second product is compiled for."""

    tokens: int
    features: int
    ranks: int
    cut_first: bool
    stages: int


# All compiled for sm_80 and sm_90 without spills.
DOWN_TILES = (
    DownTile(16, 32, 128, 3),
    DownTile(16, 64, 128, 3),
    DownTile(32, 64, 128, 3),
    DownTile(64, 64, 64, 2),
)
UP_TILES = (
    UpTile(16, 64, 32, False, 3),
    UpTile(16, 32, 64, True, 3),
    UpTile(16, 64, 64, True, 3),
    UpTile(32, 64, 32, True, 3),
    UpTile(64, 64, 32, True, 2),
)
FUSED_SPLITS = (1, 4, 8)
"""Ranges of K whose partial sums the second product can add by itself."""
_SPLITS = (1, 2, 4, 8, 16)

# From this rank on a launch of its own costs less than adding in every program: about 180
# instructions for each 32 ranks, against some 1.2 us.
_CUT_FROM_RANK = 512


def default_config(m: int, n: int, k: int, rank: int, num_sms: int) -> LowRankTritonConfig:
    """The config for x [m, k], up [n, rank] and a group or more of down [rank, k].

    By rules of thumb: programs for two waves of the first product, and as many as there are
    multiprocessors for the second.
    """
    cut_first = m > 16 or rank > _CUT_FROM_RANK
    few = n < 64 * num_sms
    ups = [tile for tile in UP_TILES if tile.tokens == _tokens(m) and tile.cut_first == cut_first]
    up = min(ups, key=lambda tile: tile.features if few else -tile.features)
    downs = [tile for tile in DOWN_TILES if tile.tokens == up.tokens]
    down = min(downs, key=lambda tile: tile.ranks)
    return _config(down, up, _split(m, k, rank, down, cut_first, num_sms))


def candidate_configs(m: int, n: int, k: int, rank: int) -> list[LowRankTritonConfig]:
    """At most 8 configs that are worth timing."""
    # 132 multiprocessors stand for a large GPU.
    pairs = [
        (down, up, _split(m, k, rank, down, up.cut_first, 132))
        for up in UP_TILES
        for down in DOWN_TILES
        if up.tokens == down.tokens == _tokens(m)
    ]
    halved = [(down, up, split // 2) for down, up, split in pairs if up.cut_first and split > 1]
    return [_config(*pair) for pair in (*pairs, *halved)][:8]


def _tokens(m: int) -> int:
    """The smallest block that holds all tokens, or the largest."""
    return next((tile.tokens for tile in UP_TILES if tile.tokens >= m), UP_TILES[-1].tokens)


def _split(m: int, k: int, rank: int, down: DownTile, cut_first: bool, num_sms: int) -> int:
    """As many ranges as fill the multiprocessors twice, two steps each.

    Partial sums stay fewer bytes than down: 8 for every rank, token and range, against 2 K.
    """
    blocks = _ceil(m, down.tokens) * _ceil(rank, down.ranks)
    most = min(_ceil(k, down.columns) // 2, k // (4 * m), _ceil(2 * max(num_sms, 1), blocks))
    allowed = _SPLITS if cut_first else FUSED_SPLITS
    return max(split for split in allowed if split <= max(most, 1))


def _config(down: DownTile, up: UpTile, split: int) -> LowRankTritonConfig:
    return LowRankTritonConfig(
        block_m=up.tokens,
        block_n=up.features,
        block_rank=down.ranks,
        block_k=down.columns,
        step_rank=up.ranks,
        split_k=split,
        cut_first=up.cut_first,
        num_stages=min(down.stages, up.stages),
    )


def _ceil(size: int, part: int) -> int:
    return -(-size // part)
