"""Times of a whole model and of what is left of it, in turns."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from secateur_kernels.timing import time_in_turns

Enter = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Variant:
    """A call, and the state of the model in which it is made."""

    call: Callable[[], object]
    enter: Enter

    @classmethod
    def plain(cls, call: Callable[[], object]) -> "Variant":
        """Of a model as it is."""
        return cls(call, nullcontext)


@torch.no_grad()
def milliseconds_in_turns(
    variants: Mapping[str, Variant], device: torch.device, rounds: int
) -> dict[str, float]:
    """Time of each variant's call; entering and leaving its state is not timed.

    On a GPU each is captured once as a CUDA graph, so that neither Python nor launches count, and
    the median is taken. On a CPU it is the lower quartile: other work on the machine only ever
    adds, and often to more than half of the turns. Where torch has one thread, that thread's own
    time is counted: on an idle machine that is the wall clock's, on a shared one others' turns are
    left out.

    Args:
        variants: by name.
        device: where the models are.
        rounds: of which each times all variants, after one that is not timed.
    """
    if device.type == "cuda":
        calls = {name: _within(variant) for name, variant in variants.items()}
        timed = time_in_turns(calls, device, rounds=rounds)
        return {name: timing.median / 1e3 for name, timing in timed.items()}
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, variant in variants.items():
            with variant.enter():
                started = clock()
                variant.call()
                taken = clock() - started
            if turn:
                seconds[name].append(taken)
    return {name: 1e3 * lower_quartile(taken) for name, taken in seconds.items()}


def lower_quartile(values: Sequence[float]) -> float:
    """A quarter of the values are below it."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def _within(variant: Variant) -> Callable[[int], object]:
    def call(_: int) -> object:
        with variant.enter():
            return variant.call()

    return call


@contextmanager
def replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While this is open, other layers stand at these dotted names."""
    saved = {name: model.get_submodule(name) for name in layers}
    try:
        _put(model, layers)
        yield
    finally:
        _put(model, saved)


def _put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
