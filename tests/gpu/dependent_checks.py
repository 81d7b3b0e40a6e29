"""Programmatic dependent launch in captured graphs: the same bits with and without it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from gpu.graph_edges import Edge, edges_of
from torch import Tensor

from secateur_kernels.dependent_launch import dependent_launch
from secateur_kernels.testing.tolerance import assert_same_bits

# About 25 ms at 2 GHz: whatever does not wait for it has long finished.
_DELAY_CYCLES = 50_000_000

Run = Callable[[Tensor], Sequence[Tensor]]
"""From x to everything that is computed: results, and what lies between layers."""


@dataclass(frozen=True)
class Recording:
    """A run that can be repeated on the same memory."""

    replay: Callable[[], None]
    results: Sequence[Tensor]
    edges: list[Edge] = field(default_factory=list)


Record = Callable[[Run, Tensor], Recording]


def record_graph(run: Run, x: Tensor) -> Recording:
    """The run as a CUDA graph."""
    run(x)  # loads kernels, and takes the memory that a capture must not
    torch.cuda.synchronize(x.device)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        results = run(x)
    return Recording(graph.replay, results, edges_of(graph))


def check_on_and_off(
    run: Run, xs: Tensor, replays: int, record: Record = record_graph
) -> tuple[list[Edge], list[Edge]]:
    """A graph gives the bits of eager calls, with dependent launch and without.

    x and all results are poisoned before every replay: what is read too early shows.

    Args:
        run: what is captured.
        xs: [count, M, K], used in turns.
        replays: of each graph.
        record: how a run is made repeatable.

    Returns:
        the edges of the graph without it, and of the one with it.
    """
    with dependent_launch(False):
        eager = [run(x) for x in xs]
    expected = [torch.stack(several) for several in zip(*eager, strict=True)]
    edges = []
    for wanted in (False, True):
        x = xs[0].clone()
        with dependent_launch(wanted):
            recording = record(run, x)
        wrong = _count_wrong(recording, x, xs, expected, replays)
        how = "with" if wanted else "without"
        assert wrong == 0, f"{wrong} of {replays} replays {how} dependent launch differ from eager"
        edges.append(recording.edges)
        if x.is_cuda:
            _check_on_a_side_stream(recording, x, xs[-1], [e[-1] for e in expected], how)
    return edges[0], edges[1]


def _count_wrong(
    recording: Recording, x: Tensor, xs: Tensor, expected: Sequence[Tensor], replays: int
) -> int:
    # Counted on the device: a comparison by the host would leave gaps between replays.
    wrong = torch.zeros((), dtype=torch.int64, device=x.device)
    for turn in range(replays):
        index = turn % len(xs)
        x.fill_(torch.nan)
        for result in recording.results:
            result.fill_(torch.nan)
        x.copy_(xs[index])
        recording.replay()
        results = zip(recording.results, expected, strict=True)
        differs = [(result != want[index]).any() for result, want in results]
        wrong += torch.stack(differs).any()
    return int(wrong)


def _check_on_a_side_stream(
    recording: Recording, x: Tensor, values: Tensor, expected: Sequence[Tensor], how: str
) -> None:
    """On another stream than that of the capture, behind a slow producer of x."""
    x.fill_(torch.nan)
    torch.cuda.synchronize(x.device)
    side = torch.cuda.Stream(x.device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(_DELAY_CYCLES)
        x.copy_(values)
        recording.replay()
        copies = [result.clone() for result in recording.results]
    side.synchronize()
    for copy, want in zip(copies, expected, strict=True):
        assert_same_bits(copy, want, f"replayed on a side stream {how} dependent launch")


def chain(layers: Sequence[Callable[[Tensor], Tensor]], columns: int) -> Run:
    """Each layer takes the first columns of what the one before it gave."""

    def run(x: Tensor) -> list[Tensor]:
        results = []
        for layer in layers:
            results.append(layer(x if not results else results[-1][:, :columns]))
        return results

    return run


def fork_and_join(
    layer: Callable[[Tensor], Tensor], last: Callable[[Tensor, Tensor], Tensor]
) -> Run:
    """Two branches behind a layer, one on a stream of its own; `last` adds one to what it makes of
    the other, and so is the join itself."""

    def run(x: Tensor) -> list[Tensor]:
        start = layer(x)
        current = side = None
        if x.is_cuda:
            current, side = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
            side.wait_stream(current)
        with nullcontext() if side is None else torch.cuda.stream(side):
            right = layer(layer(start))
        left = layer(start)
        if current is not None and side is not None:
            current.wait_stream(side)
        return [start, left, right, last(left, right)]

    return run


def behind_a_copy(layer: Callable[[Tensor], Tensor]) -> Run:
    """The layer follows a copy of its x, which is no kernel in a graph."""

    def run(x: Tensor) -> list[Tensor]:
        copied = torch.empty_like(x)
        copied.copy_(x)
        return [copied, layer(copied)]

    return run


def check_eager_calls(run: Run, xs: Tensor, times: int = 50) -> None:
    """Forced on in eager calls: the same bits, for the weights have long been there."""
    with dependent_launch(False):
        expected = [run(x) for x in xs]
    if xs.is_cuda:
        torch.cuda.synchronize(xs.device)
    with dependent_launch(True):
        results = [run(xs[turn % len(xs)]) for turn in range(times)]
    for turn, several in enumerate(results):
        for result, want in zip(several, expected[turn % len(xs)], strict=True):
            assert_same_bits(result, want, f"eager call {turn} with dependent launch")
