"""Configs of the compiled kernel: the Python formulas against those of the C interface."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur_kernels.layouts import Fragment24
from secateur_kernels.sparse24_linear import cuda_skinny_config as cuda_config
from secateur_kernels.sparse24_linear.cuda_skinny_choice import (
    MOST_CANDIDATES,
    candidate_configs,
    default_config,
    variants,
)
from secateur_kernels.sparse24_linear.cuda_skinny_config import SkinnyConfig, needs, supports

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (57344, 8192)]
SHAPES += [(8192, 28672)]
OTHER_SHAPES = [(1024, 4096), (152064, 8192), (64, 64), (1, 4), (100, 30000), (70000, 68)]
A100, H200 = (108, (8, 0)), (132, (9, 0))


def arguments_for(config: SkinnyConfig, m: int, n: int, k: int, emulator: Any) -> Any:
    tiny = Fragment24.from_dense(torch.zeros(64, 64, dtype=torch.bfloat16))
    x = torch.zeros(m, 64, dtype=torch.bfloat16)
    tiling = (config.warps, config.row_tiles, config.stages, config.blocks)
    moments = {"lead": config.lead, "ahead": config.ahead}
    arguments = emulator.skinny_arguments(x, tiny, x, tiling, cluster=config.cluster, **moments)
    arguments.rows, arguments.columns, arguments.x_stride = n, k, k
    return arguments


def check(config: SkinnyConfig, m: int, n: int, k: int, emulator: Any) -> None:
    found = emulator.needs(arguments_for(config, m, n, k, emulator))
    expected = needs(config, m, n, k)
    assert found.workspace_bytes == 4 * expected.workspace_floats
    assert found.counter_count == expected.counters
    assert found.shared_bytes == shared(config, m)


def shared(config: SkinnyConfig, m: int) -> int:
    stage = cuda_config.stage_bytes(config.block_rows, m)
    exchange = cuda_config.exchange_bytes(config.warps, config.row_tiles, m, config.cluster)
    return config.stages * stage + exchange


@pytest.mark.parametrize("m", [1, 16, 17, 64])
@pytest.mark.parametrize("shape", [*SHAPES, *OTHER_SHAPES], ids=str)
def test_defaults_and_candidates_are_accepted(
    shape: tuple[int, int], m: int, emulator: Any
) -> None:
    for num_sms, capability in (A100, H200):
        room = cuda_config.shared_bytes(capability)
        whole = cuda_config.shared_bytes(capability, alone=True)
        default = default_config(m, *shape, num_sms, capability)
        assert default.blocks <= num_sms * (2 if capability == (9, 0) else 1)
        candidates = candidate_configs(m, *shape, num_sms, capability)
        assert candidates[0] == default
        assert len(candidates) == len(set(candidates)) <= MOST_CANDIDATES
        for config in (*candidates, *candidate_configs(m, *shape, capability=capability)):
            check(config, m, *shape, emulator)
            used = shared(config, m)
            alone = config in candidates[1:3] or (config.cluster > 1 and m > 32)
            assert used <= (whole if alone else room)
            assert config.cluster == 1 or capability == (9, 0)


@pytest.mark.parametrize("shape", [*SHAPES, *OTHER_SHAPES], ids=str)
def test_variants_differ_in_their_moments(shape: tuple[int, int], emulator: Any) -> None:
    assert variants(default_config(1, *shape, *A100), *shape, *A100) == []
    for config in candidate_configs(1, *shape, *H200):
        found = variants(config, *shape, *H200)
        assert config not in found
        assert len(found) == len(set(found)) <= 8
        for variant in found:
            check(variant, 1, *shape, emulator)
            assert replace(variant, lead=config.lead, ahead=0) == config


def test_weights_are_asked_for_ahead_where_the_ring_is_too_small() -> None:
    """64 and 160 KB a multiprocessor, and no more than there is."""

    def aheads(n: int, k: int, **tiling: int) -> set[int]:
        config = SkinnyConfig(warps=8, row_tiles=2, stages=5, **tiling)
        return {variant.ahead for variant in variants(config, n, k, *H200)}

    # Four units of 4608 bytes a step; two thread blocks share a multiprocessor.
    assert aheads(28672, 4096, blocks=112) == {0, 3, 8}
    assert aheads(57344, 8192, blocks=264) == {0, 1, 4}
    # Eight steps a thread block, of which the ring holds five; or all.
    assert aheads(4096, 4096, blocks=128, cluster=8) == {0, 3}
    assert aheads(4096, 1024, blocks=128, cluster=8) == {0}


@pytest.mark.parametrize("m", [1, 8])
def test_defaults_of_an_h200(m: int) -> None:
    def tiling(n: int, k: int) -> tuple[int, int, int]:
        config = default_config(m, n, k, *H200)
        return config.block_rows, config.blocks, config.cluster

    # Clusters of four that leave room for those of the next kernel.
    assert tiling(6144, 4096) == (256, 96, 4)
    assert tiling(4096, 4096) == (192, 88, 4)
    assert tiling(4096, 14336) == (192, 88, 4)
    assert tiling(8192, 8192) == (128, 128, 2)
    # Two thread blocks a multiprocessor.
    assert tiling(28672, 4096) == (256, 224, 2)
    assert tiling(57344, 8192) == (256, 264, 1)
    assert tiling(8192, 28672) == (256, 256, 1)


def test_no_clusters_before_sm_90() -> None:
    assert default_config(1, 4096, 14336, *A100).cluster == 1


@pytest.mark.parametrize("m", [1, 16, 32, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_candidates_differ_in_what_matters(shape: tuple[int, int], m: int) -> None:
    candidates = candidate_configs(m, *shape, *H200)
    assert {config.blocks > 132 for config in candidates} == {False, True}
    assert {config.row_tiles for config in candidates} == ({2} if m <= 16 else {2, 4})
    if shape[0] <= 8192 and m <= 16:
        assert len({config.cluster for config in candidates}) >= 3


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_needs_are_those_of_the_library(data: st.DataObject, emulator: Any) -> None:
    m = data.draw(st.integers(1, 64))
    n, k = data.draw(st.integers(1, 40000)), 4 * data.draw(st.integers(1, 8000))
    row_tiles = data.draw(st.sampled_from([2, 4]))
    warps = data.draw(st.sampled_from([2, 4, 6, 8] if row_tiles == 2 else [1, 2, 3, 4]))
    units = -(-n // (warps * row_tiles * 16)) * -(-k // 64)
    blocks = data.draw(st.integers(1, min(units, 999)))
    config = SkinnyConfig(warps=warps, row_tiles=row_tiles, stages=2, blocks=blocks)
    found = emulator.needs(arguments_for(config, m, n, k, emulator))
    expected = needs(config, m, n, k)
    assert found.workspace_bytes == 4 * expected.workspace_floats
    assert found.counter_count == expected.counters


def test_what_is_supported() -> None:
    assert supports(1, 64, 64, (8, 0))
    assert supports(64, 64, 64, (9, 0))
    assert not supports(0, 64, 64, (9, 0))
    assert not supports(65, 64, 64, (9, 0))
    assert not supports(1, 64, 64, (7, 5))
