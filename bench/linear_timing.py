"""One layer at one number of tokens: all candidates in turns, isolated or in a chain.

In a chain our kernels are launched as dependents, as in any captured graph: they fetch their first
weights while the layer in front still runs. Isolated calls are not: each begins when the one in
front has ended, and so does `serial auto` in a chain, for what that is worth.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.extent import FULL
from bench.linear_candidates import Candidates, Step, candidates_for
from bench.linear_operands import SPARSE, Operands
from bench.linear_tries import Tries
from secateur_kernels.dependent_launch import dependent_launch
from secateur_kernels.testing.attempts import Attempts
from secateur_kernels.timing import Timing, copies_to_rotate, time_in_turns

MODES = ("isolated", "chain")
SERIAL = "serial auto"
_ROWS_FOR_ERRORS = 64


@dataclass(frozen=True)
class Measured:
    """Microseconds of one call of each candidate, and what is compared."""

    timings: Mapping[str, list[Timing]]
    """Name -> one a repeat; each repeat captures anew."""
    errors: Mapping[str, float]
    """Name -> |y - truth| / |truth| in the Frobenius norm, truth in float64."""
    notes: Mapping[str, str]
    calls: int
    """In one captured graph."""

    def microseconds(self, name: str) -> float:
        """The median of the repeats' medians."""
        return statistics.median(timing.median for timing in self.timings[name])

    def fastest(self, kind: str) -> tuple[str, float] | None:
        """Name and time of the fastest candidate whose name begins with `kind`; None without one.

        The fastest median of all repeats: a baseline gets the benefit of the doubt.
        """
        found = [
            (min(timing.median for timing in timings), name)
            for name, timings in self.timings.items()
            if name.startswith(kind)
        ]
        return (min(found)[1], min(found)[0]) if found else None

    def as_record(self) -> dict[str, Any]:
        """For a JSON line: microseconds, quartiles of each repeat, errors, and the baseline."""
        dense = self.fastest("dense")
        assert dense is not None
        return {
            "baseline": {"name": dense[0], "microseconds": round(dense[1], 3)},
            "microseconds": {name: round(self.microseconds(name), 3) for name in self.timings},
            "quartiles": {
                name: [_quartiles(timing) for timing in timings]
                for name, timings in self.timings.items()
            },
            "errors": {name: float(f"{error:.4g}") for name, error in self.errors.items()},
            "notes": dict(self.notes),
            "calls": self.calls,
        }


def _quartiles(timing: Timing) -> list[float]:
    return [round(t, 3) for t in (timing.lower_quartile, timing.median, timing.upper_quartile)]


class Chain:
    """Calls that feed each other: x of one is what the one before wrote.

    Where a layer writes fewer features than it reads, x stays the first one: calls then still
    follow each other on one stream, and each weight still comes cold.
    """

    def __init__(self, step: Step, x: Tensor, n: int) -> None:
        self._step = step
        self._first = x
        self._feeds = n >= x.shape[1]
        self._x = x

    def __call__(self, index: int) -> Tensor:
        """One layer; index 0 begins anew."""
        x = self._first if index == 0 or not self._feeds else self._x
        y = self._step(x, index)
        self._x = y[:, : self._first.shape[1]]
        return y


def measure(
    operands: Operands,
    m: int,
    mode: str,
    device: torch.device,
    rounds: int = FULL.rounds,
    repeats: int = FULL.repeats,
    ours: Sequence[str] | None = None,
    tries: Tries | None = None,
) -> Measured:
    """Time all candidates of a layer.

    Args:
        operands: of the layer.
        m: tokens.
        mode: `isolated`: calls that have nothing to do with each other; `chain`: `Chain`.
        device: where.
        rounds: replays of each candidate, in turns with the others.
        repeats: of the whole, each with graphs of its own.
        ours: as of `candidates_for`.
        tries: likewise.

    Raises:
        RuntimeError: not even the dense product runs.
        BrokenContextError: CUDA cannot be used any more.
    """
    tries = tries or Tries(Attempts(None), "", device)
    shape, dtype = operands.shape, operands.dense[0].dtype
    torch.manual_seed(1)
    x = torch.empty(m, shape.k, dtype=dtype, device=device).normal_()
    found = candidates_for(operands, x, mode == "isolated", ours, tries)
    if not any(name.startswith("dense") for name in found.steps):
        raise RuntimeError(f"the dense product does not run: {found.notes}")
    activations = m * (shape.n + shape.k) * x.element_size()
    count = copies_to_rotate(operands.num_bytes + activations, device)
    with dependent_launch(False if mode == "isolated" else None):
        calls = _that_can_be_timed(_calls(found, x, shape.n, mode), found, device, count, tries)
        timings: dict[str, list[Timing]] = {name: [] for name in calls}

        def time_all() -> None:
            for _ in range(repeats):
                for name, timing in time_in_turns(calls, device, count, rounds).items():
                    timings[name].append(timing)

        tries.together(time_all)
    errors: dict[str, float] = {}
    tries.together(lambda: errors.update(_errors(found, operands, x)))
    return Measured(timings, errors, found.notes, count)


def _calls(found: Candidates, x: Tensor, n: int, mode: str) -> dict[str, Callable[[int], object]]:
    if mode == "chain":
        steps = dict(found.steps)
        if "ours auto" in steps:
            steps[SERIAL] = _serial(steps["ours auto"])
        return {name: Chain(step, x, n) for name, step in steps.items()}
    calls: dict[str, Callable[[int], object]] = {
        name: _alone(step, x) for name, step in found.steps.items()
    }
    return calls | found.isolated


def _serial(step: Step) -> Step:
    def call(x: Tensor, index: int) -> Tensor:
        with dependent_launch(False):
            return step(x, index)

    return call


def _that_can_be_timed(
    calls: dict[str, Callable[[int], object]],
    found: Candidates,
    device: torch.device,
    count: int,
    tries: Tries,
) -> dict[str, Callable[[int], object]]:
    """Without those that cannot be captured, each of them noted: one must not spoil the others."""

    def runs(name: str, call: Callable[[int], object]) -> bool:
        blame = found.kernels.get("ours auto" if name == SERIAL else name, name)

        def capture() -> None:
            # Called twice before: in a chain the second call may need another kernel than the
            # first, and none should be loaded during a capture.
            time_in_turns({name: call}, device, count, rounds=1, warmup=2)

        return tries.runs(name, blame, capture, found.notes, "captured in a graph")

    return {name: call for name, call in calls.items() if runs(name, call)}


def _alone(step: Step, x: Tensor) -> Callable[[int], object]:
    return lambda index: step(x, index)


def _errors(found: Candidates, operands: Operands, x: Tensor) -> dict[str, float]:
    """Of the first rows, of what returns [M, N]; not of a dense weight that was rounded itself."""
    rows = min(len(x), _ROWS_FOR_ERRORS)
    expected = operands.exact(x[:rows])
    norm = float(expected.norm())
    return {
        name: float((step(x, 0)[:rows].double() - expected).norm()) / norm
        for name, step in found.steps.items()
        if operands.op == SPARSE or not name.startswith("dense")
    }
