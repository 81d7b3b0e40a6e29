"""Configs of the compiled kernel: the Python formulas against those of the C interface."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur_kernels.layouts import Fragment24
from secateur_kernels.sparse24_linear import cuda_config
from secateur_kernels.sparse24_linear.cuda_config import (
    Sparse24CudaConfig,
    candidate_configs,
    default_config,
    needs,
    supports,
)

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (57344, 8192), (8192, 28672)]
SHAPES += [(1024, 4096), (152064, 8192), (64, 64), (1, 4), (100, 30000), (70000, 68)]


def arguments_for(config: Sparse24CudaConfig, m: int, n: int, k: int, emulator: Any) -> Any:
    tiny = Fragment24.from_dense(torch.zeros(64, 64, dtype=torch.bfloat16))
    x = torch.zeros(m, 64, dtype=torch.bfloat16)
    tiling = (config.warps, config.row_tiles, config.stages, config.blocks)
    arguments = emulator.skinny_arguments(x, tiny, x, tiling)
    arguments.rows, arguments.columns, arguments.x_stride = n, k, k
    return arguments


def check(config: Sparse24CudaConfig, m: int, n: int, k: int, emulator: Any) -> None:
    found = emulator.needs(arguments_for(config, m, n, k, emulator))
    expected = needs(config, m, n, k)
    assert found.workspace_bytes == 4 * expected.workspace_floats
    assert found.counter_count == expected.counters
    stage = cuda_config.stage_bytes(config.block_rows, m)
    assert found.shared_bytes == config.stages * stage <= cuda_config.SHARED_BYTES


@pytest.mark.parametrize("m", [1, 8, 9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_defaults_and_candidates_are_accepted(
    shape: tuple[int, int], m: int, emulator: Any
) -> None:
    for num_sms in (108, 132):
        config = default_config(m, *shape, num_sms)
        check(config, m, *shape, emulator)
        assert config.blocks <= num_sms
        candidates = candidate_configs(m, *shape, num_sms)
        assert candidates[0] == config
        for candidate in {*candidates, *candidate_configs(m, *shape)}:
            check(candidate, m, *shape, emulator)


def test_defaults_of_an_h200_follow_the_plan() -> None:
    # K split into whole parts where that fills the multiprocessors, equal ranges elsewhere.
    assert default_config(1, 4096, 14336, 132).blocks == 128
    assert default_config(1, 28672, 4096, 132) == Sparse24CudaConfig(8, 2, 5, 132)
    assert len(candidate_configs(1, 4096, 4096, 132)) < 40


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
    config = Sparse24CudaConfig(warps, row_tiles, 2, data.draw(st.integers(1, min(units, 999))))
    found = emulator.needs(arguments_for(config, m, n, k, emulator))
    expected = needs(config, m, n, k)
    assert found.workspace_bytes == 4 * expected.workspace_floats
    assert found.counter_count == expected.counters


def test_what_is_supported() -> None:
    assert supports(1, (8, 0))
    assert supports(64, (9, 0))
    assert not supports(0, (9, 0))
    assert not supports(65, (9, 0))
    assert not supports(1, (7, 5))
