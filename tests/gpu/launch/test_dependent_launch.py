"""The compiled kernels as programmatic dependents: chains, late predecessors, forks and joins."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu.backends_here import skip_unless_there
from gpu.dependent_checks import (
    behind_a_copy,
    chain,
    check_eager_calls,
    check_on_and_off,
    fork_and_join,
)
from gpu.forced_kernels import configs, forced
from gpu.graph_edges import assert_joins_are_whole, programmatic
from gpu.launch_checks import inputs_for
from gpu.layers import SPARSE, Layer, Size, random_layer
from torch import Tensor

from secateur_kernels.dispatch.problem import device_facts
from secateur_kernels.sparse24_linear import cuda_call
from secateur_kernels.sparse24_linear.cuda_skinny_config import SkinnyConfig
from secateur_kernels.sparse24_linear.tickets import COUNTERS, Counters

BF16 = torch.bfloat16
KERNEL = "cuda-skinny"
TOKENS = (1, 8, 16, 32, 64)
HOPPER = (9, 0)
Call = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _library(device: torch.device) -> None:
    skip_unless_there("cuda", device)


def forced_call(layer: Layer, config: SkinnyConfig | None = None, **named: Any) -> Call:
    def call(x: Tensor) -> Tensor:
        with forced(KERNEL, config):
            return layer(x, "cuda", **named)

    return call


def schedules(layer: Layer, m: int) -> Iterator[SkinnyConfig]:
    """One config of each way to share a row block that the device has."""
    seen = set()
    for config in configs(KERNEL, m, *layer.shape, layer.device):
        kind = (config.cluster, config.blocks % 2, config.blocks > 132)
        if kind not in seen:
            seen.add(kind)
            yield config
            # Weights are asked for ahead while the ring waits for x.
            yield replace(config, stages=2, ahead=3)


def expected_edges(device: torch.device, layers: int) -> int:
    return layers - 1 if device_facts(device).capability == HOPPER else 0


@pytest.mark.parametrize("m", TOKENS)
def test_a_chain_a_thousand_times(m: int, device: torch.device) -> None:
    layers = [random_layer(Size(SPARSE, 1024, 1024), BF16, device, seed=i) for i in range(8)]
    xs = inputs_for(layers[0], m, 3, BF16, device)
    run = chain([forced_call(layer) for layer in layers], 1024)
    off, on = check_on_and_off(run, xs, replays=1000)
    assert programmatic(off) == 0
    assert programmatic(on) == expected_edges(device, len(layers))


@pytest.mark.parametrize("m", TOKENS)
def test_every_schedule(m: int, device: torch.device) -> None:
    layers = [random_layer(Size(SPARSE, 4096, 1024), BF16, device, seed=i) for i in range(3)]
    xs = inputs_for(layers[0], m, 2, BF16, device)
    for config in schedules(layers[0], m):
        calls = [forced_call(layer, config) for layer in layers]
        check_on_and_off(chain(calls, 1024), xs, replays=100)


@pytest.mark.parametrize("m", [1, 16, 64])
def test_bias_and_residual_of_the_kernel_in_front(m: int, device: torch.device) -> None:
    layers = [random_layer(Size(SPARSE, 1024, 1024), BF16, device, seed=i) for i in range(4)]

    def adds_its_input(layer: Layer) -> Call:
        bias = torch.ones(1024, dtype=BF16, device=device)
        return lambda x: forced_call(layer, bias=bias, residual=x)(x)

    run = chain([adds_its_input(layer) for layer in layers], 1024)
    check_on_and_off(run, inputs_for(layers[0], m, 2, BF16, device), replays=200)


@pytest.mark.parametrize("m", [1, 32])
def test_a_predecessor_that_writes_late(m: int, device: torch.device) -> None:
    """It lets its successor start at once, and writes the x of that at the end of 60 us or more."""
    slow = random_layer(Size(SPARSE, 8192, 28672), BF16, device)
    quick = random_layer(Size(SPARSE, 256, 8192), BF16, device, seed=1)
    # One thread block a row block, none of them shared: all of y comes last.
    panels = 8192 // 256
    late = replace(configs(KERNEL, m, 8192, 28672, device)[0], blocks=panels, cluster=1)
    for first in (None, late):
        run = chain([forced_call(slow, first), forced_call(quick)], 8192)
        xs = inputs_for(slow, m, 2, BF16, device)
        _, on = check_on_and_off(run, xs, replays=100)
        assert programmatic(on) == expected_edges(device, 2)


@pytest.mark.parametrize("m", [1, 32])
def test_forks_and_joins(m: int, device: torch.device) -> None:
    layer = random_layer(Size(SPARSE, 1024, 1024), BF16, device)

    def last(left: Tensor, right: Tensor) -> Tensor:
        return forced_call(layer, residual=right)(left)

    run = fork_and_join(forced_call(layer), last)
    off, on = check_on_and_off(run, inputs_for(layer, m, 2, BF16, device), replays=200)
    assert programmatic(off) == 0
    assert_joins_are_whole(on)


def test_behind_what_is_no_kernel(device: torch.device) -> None:
    layer = random_layer(Size(SPARSE, 1024, 1024), BF16, device)
    run = behind_a_copy(forced_call(layer))
    _, on = check_on_and_off(run, inputs_for(layer, 4, 2, BF16, device), replays=200)
    assert programmatic(on) == 0


def test_counters_that_are_filled_in_the_graph(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the pool a capture gets counters of its own, filled with zeros at each replay."""

    def own(device: torch.device, count: int) -> Counters:
        filled = torch.zeros(max(count, COUNTERS), dtype=torch.int32, device=device)
        return Counters(filled.data_ptr(), len(filled), filled)

    monkeypatch.setattr(cuda_call, "take_counters", own)
    layers = [random_layer(Size(SPARSE, 1024, 1024), BF16, device, seed=i) for i in range(3)]
    config = SkinnyConfig(warps=4, row_tiles=2, stages=4, blocks=60)
    run = chain([forced_call(layer, config) for layer in layers], 1024)
    check_on_and_off(run, inputs_for(layers[0], 4, 2, BF16, device), replays=200)


@pytest.mark.parametrize("m", [1, 64])
def test_forced_on_in_eager_calls(m: int, device: torch.device) -> None:
    layers = [random_layer(Size(SPARSE, 1024, 1024), BF16, device, seed=i) for i in range(6)]
    run = chain([forced_call(layer) for layer in layers], 1024)
    check_eager_calls(run, inputs_for(layers[0], m, 3, BF16, device))
