"""Configs of the kernel for warpgroups: the Python formulas against those of the C interface."""

import ctypes
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.wide_case import Tiling, Wide, arguments_of, needs_of

from secateur_kernels.layouts import Fragment24
from secateur_kernels.sparse24_linear.cuda_needs import Needs
from secateur_kernels.sparse24_linear.cuda_wide_choice import (
    MOST_CANDIDATES,
    candidate_configs,
    default_config,
    variants,
)
from secateur_kernels.sparse24_linear.cuda_wide_config import (
    SHARED_BYTES,
    TILES,
    WideConfig,
    groups_of,
    needs,
    supports,
)

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (57344, 8192), (8192, 28672)]
SHAPES += [(1024, 4096), (152064, 8192), (64, 64), (1, 4), (100, 30000), (70000, 68)]


def arguments_for(config: WideConfig, m: int, n: int, k: int) -> Wide:
    tiny = Fragment24.from_dense(torch.zeros(64, 64, dtype=torch.bfloat16))
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    fields = dataclasses.asdict(config)
    del fields["kernel"]
    fields["tile_tokens"] = fields.pop("tokens")
    arguments = arguments_of(x, tiny, x, Tiling(**fields))
    arguments.tokens, arguments.rows, arguments.columns, arguments.x_stride = m, n, k, k
    return arguments


def check(config: WideConfig, m: int, n: int, k: int, emulator: Any) -> None:
    found = needs_of(arguments_for(config, m, n, k), emulator)
    expected = needs(config, m, n, k)
    assert found.workspace_bytes == 4 * expected.workspace_floats
    assert found.counter_count == expected.counters
    assert found.shared_bytes == config.tile.shared_bytes(config.stages) <= SHARED_BYTES


@pytest.mark.parametrize("m", [1, 33, 128, 200, 4096, 65536])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_defaults_and_candidates_are_accepted(
    shape: tuple[int, int], m: int, emulator: Any
) -> None:
    for num_sms in (114, 132):
        config = default_config(m, *shape, num_sms, (9, 0))
        check(config, m, *shape, emulator)
        assert config.blocks <= num_sms * config.tile.resident
        candidates = candidate_configs(m, *shape, num_sms, (9, 0))
        assert candidates[0] == config
        assert len(set(candidates)) == len(candidates) <= MOST_CANDIDATES
        for candidate in candidates:
            check(candidate, m, *shape, emulator)
    assert candidate_configs(m, *shape) == candidate_configs(m, *shape, 132)


@pytest.mark.parametrize("m", [33, 128, 512, 4096])
def test_variants_differ_in_their_moments(m: int, emulator: Any) -> None:
    shape = (4096, 14336)
    for config in candidate_configs(m, *shape, 132):
        found = variants(config, m, *shape, 132)
        assert config not in found
        assert len(found) == len(set(found)) <= 5
        for variant in found:
            check(variant, m, *shape, emulator)
            assert dataclasses.replace(variant, late=config.late, ahead=0) == config
            assert variant.ahead == 0 or m <= 256


def test_weights_are_asked_for_ahead_where_the_ring_is_too_small() -> None:
    """64 and 160 KB a multiprocessor, of two units a step, and no more than there is."""

    def aheads(k: int, **tiling: int) -> set[int]:
        config = WideConfig(
            warpgroups=2, panels=1, tokens=128, stages=8, group=1, **{"waves": 1, **tiling}
        )
        return {variant.ahead for variant in variants(config, 128, 4096, k, 132)}

    assert aheads(4096, blocks=32) == {0, 7, 17}
    assert aheads(4096, blocks=64, cluster_tokens=2) == {0, 14, 35}
    # 20 steps, in halves, of which the ring holds eight each; a quarter is less.
    assert aheads(1280, blocks=64, waves=0) == {0, 2}
    assert aheads(1280, blocks=64, cluster_steps=2) == {0, 2}
    assert aheads(1280, blocks=128, waves=0) == {0}


def test_a_config_prints_itself_and_comes_back() -> None:
    config = default_config(128, 4096, 4096, 132)
    assert config.kernel == "wide"
    assert WideConfig(**dataclasses.asdict(config)) == config


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_needs_are_those_of_the_library(data: st.DataObject, emulator: Any) -> None:
    tile = data.draw(st.sampled_from(TILES))
    m, n = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 40000))
    k = 4 * data.draw(st.integers(1, 4000))
    cluster = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (4, 2)]))
    groups = groups_of(tile, cluster, m, n)
    clusters = data.draw(st.integers(1, min(400, groups * -(-k // 64))))
    config = WideConfig(
        warpgroups=tile.warpgroups,
        panels=tile.panels,
        tokens=tile.tokens,
        stages=2,
        cluster_rows=cluster[0],
        cluster_tokens=cluster[1],
        blocks=clusters * cluster[0] * cluster[1],
        waves=data.draw(st.integers(0, -(-groups // clusters))),
        group=1,
    )
    check(config, m, n, k, emulator)


@pytest.mark.parametrize("m", [33, 64])
def test_clusters_split_the_steps_of_few_tiles(m: int) -> None:
    config = default_config(m, 8192, 8192, 132)
    assert config.cluster_steps > 1
    assert needs(config, m, 8192, 8192) == Needs(0, 0)
    for tokens in (m, 128, 256):
        timed = {c.cluster_steps for c in candidate_configs(tokens, 4096, 4096, 132)}
        assert 1 in timed
        assert len(timed) > 1
    # There are tiles for all multiprocessors.
    assert default_config(4096, 4096, 4096, 132).cluster_steps == 1


def test_what_is_supported() -> None:
    assert supports(1, 64, 64, (9, 0))
    assert supports(65536, 152064, 8192, (9, 0))
    assert not supports(0, 64, 64, (9, 0))
    assert not supports(2**30 + 1, 64, 64, (9, 0))
    assert not supports(64, 64, 64, (8, 0))
    assert not supports(64, 64, 64, (10, 0))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": 0}, "got a null pointer"),
    ({"weight": None}, "got a null pointer"),
    ({"rows": 0}, "at least one row"),
    ({"columns": 66}, "columns divisible by 4"),
    ({"tokens": 0}, "expected 1 to 2**30 tokens"),
    ({"tokens": 2**30 + 1}, "expected 1 to 2**30 tokens"),
    ({"silu_and_mul": 1}, "expected row order gate_up"),
    ({"value_type": 3}, "expected value type"),
    ({"warpgroups": 4}, "expected warpgroups x panels x tokens"),
    ({"panels": 3}, "expected warpgroups x panels x tokens"),
    ({"tile_tokens": 48}, "expected warpgroups x panels x tokens"),
    ({"stages": 1}, "expected 2 to 16 stages"),
    ({"stages": 17}, "expected 2 to 16 stages"),
    ({"ahead": -1}, "expected 0 to 1024 steps"),
    ({"ahead": 1025}, "expected 0 to 1024 steps"),
    ({"cluster_rows": 3}, "expected clusters of 1, 2 or 4"),
    ({"cluster_rows": 4, "cluster_tokens": 4}, "to 8 in all"),
    ({"cluster_rows": 2, "blocks": 3}, "expected whole clusters"),
    ({"cluster_steps": 3}, "expected the steps of 64 columns of a tile split among"),
    ({"cluster_steps": 16}, "expected the steps of 64 columns of a tile split among"),
    # A tile that is not whole; a step for two; too many in all; a tile that is too large.
    ({"cluster_steps": 2}, "whole tiles only"),
    ({"cluster_steps": 4, "blocks": 4, "waves": 1}, "a step for each"),
    ({"cluster_steps": 4, "cluster_rows": 4, "blocks": 16, "waves": 1}, "clusters of 8 at most"),
    ({"cluster_steps": 2, "panels": 2, "tile_tokens": 128, "waves": 1}, "256 x 64 at most"),
    (
        {"cluster_steps": 2, "tile_tokens": 128, "stages": 2, "waves": 1},
        "expected as many stages as hold the sums",
    ),
    ({"blocks": 0}, "expected whole clusters"),
    ({"blocks": 10**6}, "expected whole clusters"),
    ({"waves": 9}, "expected whole clusters"),
    ({"group": 0}, "expected whole clusters"),
    ({"workspace_bytes": 16}, "the workspace is smaller"),
    ({"counter_count": 0}, "fewer counters"),
    ({"x_stride": 132}, "rows of x that start at multiples of 16 bytes"),
    ({"x_stride": 0}, "expected rows of x that do not overlap"),
    ({"x_stride": 120}, "expected rows of x that do not overlap"),
    ({"x_stride": 2**39}, "less than 2**39 apart"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED, ids=str)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], text: str, emulator: Any) -> None:
    packed = Fragment24.from_dense(torch.zeros(128, 128, dtype=torch.bfloat16))
    # Addresses that nothing is read from.
    memory = torch.zeros(1 << 16)
    start = memory.data_ptr() + -memory.data_ptr() % 16
    x = torch.zeros(3, 128, dtype=torch.bfloat16)
    arguments = arguments_of(x, packed, x, Tiling(blocks=2))
    arguments.x = arguments.weight = arguments.workspace = arguments.counters = start
    arguments.workspace_bytes, arguments.counter_count = 4 << 15, 64
    check_code = emulator.functions.secateur_sparse24_wide_check
    assert check_code(ctypes.byref(arguments)) == 0
    for name, value in changes.items():
        setattr(arguments, name, value)
    assert text in emulator.text(check_code(ctypes.byref(arguments)))


@pytest.mark.parametrize("name", ["x", "weight", "workspace", "counters"])
def test_misaligned_pointers_are_refused(name: str, emulator: Any) -> None:
    packed = Fragment24.from_dense(torch.zeros(128, 128, dtype=torch.bfloat16))
    x = torch.zeros(3, 128, dtype=torch.bfloat16)
    arguments = arguments_of(x, packed, x, Tiling(blocks=2))
    for each in ("x", "weight", "workspace", "counters"):
        setattr(arguments, each, 1 << 20)
    arguments.workspace_bytes, arguments.counter_count = 4 << 15, 64
    setattr(arguments, name, (1 << 20) + 2)
    text = emulator.text(emulator.functions.secateur_sparse24_wide_check(ctypes.byref(arguments)))
    assert "aligned" in text or "multiples of 16 bytes" in text
