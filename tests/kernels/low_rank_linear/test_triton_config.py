"""Configs of the Triton kernels of the low-rank linear: pure, few, and all of them compiled."""

from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from secateur_kernels.low_rank_linear.triton_config import (
    DOWN_TILES,
    FUSED_SPLITS,
    UP_TILES,
    LowRankTritonConfig,
    candidate_configs,
    default_config,
)

SIZES = st.integers(1, 1 << 17)


def assert_compiled(config: LowRankTritonConfig) -> None:
    down = (config.block_m, config.block_rank, config.block_k)
    up = (config.block_m, config.block_n, config.step_rank, config.cut_first)
    assert down in {(tile.tokens, tile.ranks, tile.columns) for tile in DOWN_TILES}
    assert up in {(tile.tokens, tile.features, tile.ranks, tile.cut_first) for tile in UP_TILES}
    assert config.cut_first or config.split_k in FUSED_SPLITS
    stages = {tile.stages for tile in (*DOWN_TILES, *UP_TILES) if tile.tokens == config.block_m}
    assert stages == {config.num_stages}
    assert config.num_warps == 4


@given(m=SIZES, n=SIZES, k=SIZES, rank=st.integers(1, 512), num_sms=st.integers(0, 200))
def test_configs_name_compiled_tiles(m: int, n: int, k: int, rank: int, num_sms: int) -> None:
    default = default_config(m, n, k, 16 * rank, num_sms)
    candidates = candidate_configs(m, n, k, 16 * rank)
    assert 1 <= len(candidates) <= 8
    assert len(set(candidates)) == len(candidates)
    assert default == default_config(m, n, k, 16 * rank, num_sms)
    for config in (default, *candidates):
        assert_compiled(config)
        assert LowRankTritonConfig(**asdict(config)) == config
        assert config.block_m >= min(m, 64)


@given(m=SIZES, n=SIZES, k=SIZES, rank=st.integers(1, 512), num_sms=st.integers(1, 200))
def test_k_is_split_no_more_than_there_is_work(
    m: int, n: int, k: int, rank: int, num_sms: int
) -> None:
    config = default_config(m, n, k, 16 * rank, num_sms)
    blocks = -(-m // config.block_m) * -(-16 * rank // config.block_rank)
    split = config.split_k
    # One range less would not fill the multiprocessors twice; partial sums are less than down.
    assert split == 1 or (split - 1) * blocks < 2 * num_sms
    assert split == 1 or (2 * split <= -(-k // config.block_k) and 4 * m * split <= k)


def test_few_tokens_split_k_and_a_high_rank_is_cut_first() -> None:
    low, high = default_config(1, 4096, 4096, 128, 132), default_config(1, 4096, 4096, 1024, 132)
    assert low.split_k > 1
    assert not low.cut_first
    assert high.cut_first
    assert default_config(1, 4096, 64, 128, 132).split_k == 1


def test_a_config_says_what_it_is() -> None:
    config = LowRankTritonConfig(16, 32, 64, 128, 64, 2, True)
    assert str(config) == (
        "16 tokens; down 64 rows x 128 columns, K in 2; up 32 rows x 64 ranks, t cut first; "
        "4 warps, 3 stages"
    )
