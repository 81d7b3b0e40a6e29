"""The GPU suite's checks of dependent launch, on the CPU: they pass where they should, and fail.

A recording is then a run that is repeated into the memory of its first results.
"""

from collections.abc import Callable

import pytest
import torch
from gpu.dependent_checks import (
    Recording,
    Run,
    behind_a_copy,
    chain,
    check_eager_calls,
    check_on_and_off,
    fork_and_join,
)
from gpu.graph_edges import Edge, assert_joins_are_whole, programmatic
from gpu.launch_checks import inputs_for
from gpu.layers import SPARSE, Layer, Size, random_layer
from torch import Tensor

from secateur_kernels.dependent_launch import wants_dependent_launch

CPU = torch.device("cpu")
FP16 = torch.float16
Call = Callable[[Tensor], Tensor]


def record(run: Run, x: Tensor) -> Recording:
    dependent = wants_dependent_launch(CPU)
    results = [result.clone() for result in run(x)]

    def replay() -> None:
        for result, now in zip(results, run(x), strict=True):
            result.copy_(now)

    return Recording(replay, results, [Edge(1, 2, dependent)])


def record_nothing(run: Run, x: Tensor) -> Recording:
    """As if a graph were empty."""
    return Recording(lambda: None, [result.clone() for result in run(x)])


@pytest.fixture
def layer() -> Layer:
    return random_layer(Size(SPARSE, 64, 64), FP16, CPU)


def runs(layer: Layer) -> dict[str, Run]:
    return {
        "chain": chain([layer, layer, layer], 64),
        "fork and join": fork_and_join(layer, lambda left, right: layer(left, residual=right)),
        "behind a copy": behind_a_copy(layer),
    }


@pytest.mark.parametrize("name", ["chain", "fork and join", "behind a copy"])
def test_what_is_right_passes(name: str, layer: Layer) -> None:
    run, xs = runs(layer)[name], inputs_for(layer, 3, 2, FP16, CPU)
    off, on = check_on_and_off(run, xs, 4, record)
    assert (programmatic(off), programmatic(on)) == (0, 1)
    check_eager_calls(run, xs, times=4)


@pytest.mark.parametrize("name", ["chain", "fork and join", "behind a copy"])
def test_stale_results_are_found(name: str, layer: Layer) -> None:
    run, xs = runs(layer)[name], inputs_for(layer, 3, 2, FP16, CPU)
    with pytest.raises(AssertionError, match="4 of 4 replays without dependent launch differ"):
        check_on_and_off(run, xs, 4, record_nothing)


def test_x_that_is_read_too_early_is_found(layer: Layer) -> None:
    states = [False]

    def hasty(dependent: Callable[[], bool]) -> Run:
        return chain([lambda x: layer(x) + (torch.nan if dependent() else 0), layer], 64)

    def record_state(run: Run, x: Tensor) -> Recording:
        states.append(wants_dependent_launch(CPU))
        return record(run, x)

    xs = inputs_for(layer, 3, 2, FP16, CPU)
    with pytest.raises(AssertionError, match="3 of 3 replays with dependent launch differ"):
        check_on_and_off(hasty(lambda: states[-1]), xs, 3, record_state)
    with pytest.raises(AssertionError, match="eager call 0 with dependent launch"):
        check_eager_calls(hasty(lambda: wants_dependent_launch(CPU)), xs, times=2)


def test_edges_into_a_join() -> None:
    whole = [Edge(1, 2, True), Edge(2, 4, False), Edge(3, 4, False)]
    assert_joins_are_whole(whole)
    with pytest.raises(AssertionError, match="1 programmatic edges lead into a join"):
        assert_joins_are_whole([*whole, Edge(5, 4, True)])
