"""Configs of the Triton kernel of the 2:4 linear: pure, few, and all of them compiled."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur_kernels.sparse24_linear.triton_config import (
    TILES,
    Sparse24TritonConfig,
    candidate_configs,
    default_config,
)
from secateur_kernels.sparse24_linear.triton_kernel import split_of

COMPILED = {(t.tokens, t.rows, t.columns, t.warps, t.stages) for t in TILES}
SIZES = st.integers(1, 1 << 17)


def tile_of(config: Sparse24TritonConfig) -> tuple[int, int, int, int, int]:
    sizes = (config.block_m, config.block_n, config.block_k)
    return (*sizes, config.num_warps, config.num_stages)


@given(m=SIZES, n=SIZES, k=st.integers(1, 10000), num_sms=st.integers(0, 200))
def test_configs_name_compiled_tiles(m: int, n: int, k: int, num_sms: int) -> None:
    default = default_config(m, n, 4 * k, num_sms)
    candidates = candidate_configs(m, n, 4 * k)
    assert 1 <= len(candidates) <= 8
    assert len(set(candidates)) == len(candidates)
    assert {tile_of(config) for config in (default, *candidates)} <= COMPILED
    assert default == default_config(m, n, 4 * k, num_sms)
    for config in (default, *candidates):
        assert Sparse24TritonConfig(**asdict(config)) == config
        # All tokens in one block where a block is large enough.
        assert config.block_m >= min(m, 64)


@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (28672, 4096), (4096, 14336), (1024, 4096)])
def test_few_tokens_fill_the_device(n: int, k: int) -> None:
    config = default_config(1, n, k, 132)
    programs = -(-n // config.block_n) * split_of(k, config)
    assert programs >= 132
    # A second wave that is nearly empty would double the time.
    assert programs <= 4 * 132


@given(k=st.integers(0, 5000), split_k=st.integers(1, 40))
def test_no_range_of_k_is_empty(k: int, split_k: int) -> None:
    config = Sparse24TritonConfig(16, 64, 128, split_k, 4, 4)
    blocks = -(-4 * k // 128)
    each = -(-blocks // split_k)
    splits = split_of(4 * k, config)
    assert 1 <= splits <= split_k
    assert (splits - 1) * each < max(blocks, 1) <= max(splits * each, 1)


def test_a_config_says_what_it_is() -> None:
    assert str(Sparse24TritonConfig(16, 64, 128, 4, 8, 3)) == (
        "tile 16 tokens x 64 rows x 128 columns, K in 4, 8 warps, 3 stages, groups of 8"
    )
