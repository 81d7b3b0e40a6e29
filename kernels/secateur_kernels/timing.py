"""Times of several candidates in one run, in turns, so that all meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# Bytes of distinct operands that one round touches: several times the largest L2 cache.
ROTATION_BYTES = 400_000_000


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call, over rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int

    @classmethod
    def of(cls, microseconds: list[float]) -> "Timing":
        """From one figure a round."""
        if len(microseconds) == 1:
            return cls(microseconds[0], microseconds[0], microseconds[0], 1)
        quartiles = statistics.quantiles(microseconds, n=4, method="inclusive")
        return cls(quartiles[1], quartiles[0], quartiles[2], len(microseconds))


def copies_to_rotate(num_bytes: int, device: torch.device, most: int = 256) -> int:
    """How many copies of an operand make each call find it out of the cache; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return max(2, min(most, -(-ROTATION_BYTES // max(1, num_bytes))))


def time_in_turns(
    calls: Mapping[str, Callable[[int], object]],
    device: torch.device,
    copies: int = 1,
    rounds: int = 15,
    warmup: int = 2,
) -> dict[str, Timing]:
    """Time calls against each other.

    On a GPU each candidate is captured once as a CUDA graph of `copies` calls, so that neither
    Python nor launches count and each call reads another copy; replays of all candidates then
    alternate. On a CPU calls alternate and are timed one by one.

    Args:
        calls: name -> call with the index of the copy to use.
        device: where they run.
        copies: how many there are.
        rounds: replays or calls of each candidate.
        warmup: calls before anything is timed.

    Returns:
        name -> microseconds of one call.
    """
    for call in calls.values():
        for index in range(warmup):
            call(index % copies)
    timed = _gpu_rounds if device.type == "cuda" else _cpu_rounds
    samples = timed(calls, device, copies, rounds)
    return {name: Timing.of(values) for name, values in samples.items()}


def _cpu_rounds(
    calls: Mapping[str, Callable[[int], object]], device: torch.device, copies: int, rounds: int
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call(index % copies)
            samples[name].append((time.perf_counter() - started) * 1e6)
    return samples


def _gpu_rounds(
    calls: Mapping[str, Callable[[int], object]], device: torch.device, copies: int, rounds: int
) -> dict[str, list[float]]:
    graphs = {}
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        for name, call in calls.items():
            graphs[name] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[name]):
                for index in range(copies):
                    call(index)
            graphs[name].replay()
        torch.cuda.synchronize()
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, graph in graphs.items():
                samples[name].append(_replay_time(graph) * 1e3 / copies)
    return samples


def _replay_time(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of one replay."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))
