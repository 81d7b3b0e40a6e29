"""How ops are launched: streams, CUDA graphs, repetition, several devices. GPUs only."""

import torch
from gpu.layers import Layer, random_values
from torch import Tensor

from secateur_kernels.testing.buffers import poison_free_memory, poisoned_allocations
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within

# About 25 ms at 2 GHz: whatever does not wait for it has long finished.
_DELAY_CYCLES = 50_000_000
_REPLAYS = 1000


def inputs_for(
    layer: Layer, m: int, count: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[count, M, K]."""
    generator = torch.Generator(device).manual_seed(7)
    return random_values((count, m, layer.shape[1]), dtype, generator)


def check_repetition(layer: Layer, xs: Tensor, backend: str, times: int = 30) -> None:
    """Bits do not change from call to call, whatever else the memory held in between."""
    first = [layer(x, backend) for x in xs]
    for turn in range(times):
        if turn % 10 == 0:
            poison_free_memory(xs.device, largest=1 << 26)
        for x, expected in zip(xs, first, strict=True):
            assert_same_bits(layer(x, backend), expected, f"{backend}, call {turn}")


def check_side_stream(layer: Layer, xs: Tensor, backend: str) -> None:
    """The op runs on the current stream: behind the slow producer of its x, before its reader."""
    expected = layer(xs[0], backend)
    x = torch.full_like(xs[0], torch.nan)
    torch.cuda.synchronize(xs.device)
    side = torch.cuda.Stream(xs.device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(_DELAY_CYCLES)
        x.copy_(xs[0])
        y = layer(x, backend)
        copied = y.clone()
        x.fill_(torch.nan)
    side.synchronize()
    assert_same_bits(copied, expected, f"{backend} on a side stream")


def check_two_streams(layer: Layer, xs: Tensor, backend: str, times: int = 50) -> None:
    """Calls in flight on two streams share nothing that either writes."""
    expected = [layer(x, backend) for x in xs[:2]]
    streams = [torch.cuda.Stream(xs.device) for _ in range(2)]
    torch.cuda.synchronize(xs.device)
    results: list[list[Tensor]] = [[], []]
    for _ in range(times):
        for stream, x, kept in zip(streams, xs[:2], results, strict=True):
            with torch.cuda.stream(stream):
                kept.append(layer(x, backend))
    torch.cuda.synchronize(xs.device)
    for kept, want in zip(results, expected, strict=True):
        for turn, y in enumerate(kept):
            assert_same_bits(y, want, f"{backend}, call {turn} beside another stream")


def check_graph(
    layer: Layer, xs: Tensor, backend: str, replays: int = _REPLAYS, poison: bool = False
) -> None:
    """A captured call gives the bits of an eager one, a thousand times over.

    x and y are poisoned before every replay, so that a stale or partial result shows.

    Args:
        layer: what is called.
        xs: [count, M, K], used in turns.
        backend: of the layer.
        replays: how often.
        poison: capture with poisoned allocations: workspaces are then poisoned at every replay.
    """
    expected = torch.stack([layer(x, backend) for x in xs])
    x = xs[0].clone()
    graph, y = _captured(layer, x, backend, poison)
    wrong = torch.zeros((), dtype=torch.int64, device=xs.device)
    for turn in range(replays):
        index = turn % len(xs)
        x.fill_(torch.nan)
        y.fill_(torch.nan)
        x.copy_(xs[index])
        graph.replay()
        # Counted on the device: a comparison by the host would leave gaps between replays.
        wrong += (y != expected[index]).any()
    assert int(wrong) == 0, f"{backend}: {int(wrong)} of {replays} replays differ from eager calls"
    _replay_elsewhere(graph, x, xs, y, expected, backend)


def _captured(
    layer: Layer, x: Tensor, backend: str, poison: bool
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    # Kernels are compiled and loaded at their first call: not while a graph is captured.
    layer(x, backend)
    torch.cuda.synchronize(x.device)
    graph = torch.cuda.CUDAGraph()
    if not poison:
        with torch.cuda.graph(graph):
            y = layer(x, backend)
        return graph, y
    with poisoned_allocations(), torch.cuda.graph(graph):
        y = layer(x, backend)
    return graph, y


def _replay_elsewhere(
    graph: torch.cuda.CUDAGraph,
    x: Tensor,
    xs: Tensor,
    y: Tensor,
    expected: Tensor,
    backend: str,
) -> None:
    """On another stream than that of the capture."""
    torch.cuda.synchronize(x.device)
    side = torch.cuda.Stream(x.device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(_DELAY_CYCLES)
        x.copy_(xs[-1])
        graph.replay()
        last = y.clone()
    side.synchronize()
    assert_same_bits(last, expected[-1], f"{backend}, replayed on a side stream")


def check_many_graphs(layer: Layer, xs: Tensor, backend: str) -> None:
    """More graphs than a pool of workspaces may have room for, all alive, replayed in turns."""
    expected = [layer(x, backend) for x in xs]
    graphs = [_captured(layer, x, backend, poison=False) for x in xs]
    for turn in range(3):
        for graph, y in graphs:
            y.fill_(torch.nan)
            graph.replay()
        for (_, y), want in zip(graphs, expected, strict=True):
            assert_same_bits(y, want, f"{backend}, {len(xs)} graphs, turn {turn}")


def check_chain_graph(layers: list[Layer], x: Tensor, backend: str, replays: int = 200) -> None:
    """Layers that feed each other in one graph, allocations between them included."""

    def run(tokens: Tensor) -> Tensor:
        for layer in layers:
            tokens = layer(tokens, backend)[:, : layers[0].shape[1]]
        return tokens

    expected = run(x)
    torch.cuda.synchronize(x.device)
    graph = torch.cuda.CUDAGraph()
    static = x.clone()
    with torch.cuda.graph(graph):
        y = run(static)
    wrong = torch.zeros((), dtype=torch.int64, device=x.device)
    for _ in range(replays):
        static.fill_(torch.nan)
        y.fill_(torch.nan)
        static.copy_(x)
        graph.replay()
        wrong += (y != expected).any()
    assert int(wrong) == 0, f"{backend}: {int(wrong)} of {replays} replays of a chain differ"


def check_other_device(layer: Layer, x: Tensor, backend: str, other: torch.device) -> None:
    """Tensors on a device that is not the current one: launched there, and correct."""
    assert torch.cuda.current_device() != other.index
    moved = Layer(
        layer.op,
        None if layer.sparse is None else layer.sparse.to(str(other)),
        None if layer.dense is None else layer.dense.to(other),
        None if layer.factors is None else layer.factors.to(str(other)),
    )
    there = x.to(other)
    y = moved(there, backend)
    assert y.device == other
    expected = moved.expected(there, moved.resolved(there, backend))
    assert_within(y, expected, f"{backend} on {other}")
    assert torch.cuda.current_device() != other.index
