"""Where the time of a layer goes inside the skinny and the wide kernel, on a GPU.

    python -m bench.timeline
    python -m bench.timeline --tokens 8 --budget 20

A chain of layers with cold weights and dependent launch in a CUDA graph; each thread block marks
when it passes the points of `csrc/include/secateur/device/marks.h`. `results/timeline.jsonl` has a
line for each configuration.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import gpu_programs
from bench.kernel_records import RESULTS, append_record
from bench.named_device import named_device

NAME = "timeline"
# What each says, in the order of the kernel's enum.
POINTS = {
    "started": "first instruction of a thread block",
    "weights_asked": "the weights that fill the ring are asked for",
    "successor_let": "the next kernel may start, as far as this thread block is concerned",
    "predecessor_ended": "the wait for the kernel in front is over",
    "x_asked": "x of the first stage is asked for",
    "first_full": "the first stage is there",
    "last_asked": "the last stage is asked for",
    "last_full": "the last stage is there",
    "handed_over": "the last products are over; skinny in a cluster: sums are handed over",
    "summed": "the sums of all are there (with tickets: asked for, by the last to draw one)",
    "left": "last instruction, y is written",
}
READINGS = 16
RATE = 4.6  # TB/s that rings of bulk copies reach on an H200; other GPUs' memory is slower
# Layers at either end that are not typical: nothing runs in front of the first.
_ENDS = 2
_TOKENS = (1, 16)
# Of a config: when the next kernel may start, and what is asked for ahead.
_STARTS = ("lead", "late", "ahead")
EXPLANATION = """\
Microseconds from the moment when the last thread block of the layer in front left: below zero,
that layer still runs. Of each point the first, the median and the last thread block to pass it;
a block of several warps or row blocks passes when its last one does (started, first_full: its
first). Means of the middle layers. A layer takes as long as the last block's "left" says."""


@dataclass(frozen=True)
class Run:
    """What the program says of one configuration."""

    rows: int
    columns: int
    tokens: int
    kernel: str
    config: dict[str, int]
    bytes: int
    layers: int
    multiprocessors: int
    plain_us: float
    """A layer where nothing is marked."""

    @property
    def title(self) -> str:
        """All but its moments."""
        config = ", ".join(f"{k} {v}" for k, v in self.config.items() if k not in _STARTS)
        return (
            f"{self.rows} x {self.columns}, {self.tokens} tokens: {self.kernel}, {config}; "
            f"{self.bytes * 1e-6:.1f} MB, {self.bytes / RATE * 1e-6:.1f} us at {RATE} TB/s"
        )

    @property
    def start(self) -> str:
        """Its moments."""
        return ", ".join(f"{k} {v}" for k, v in self.config.items() if k in _STARTS)

    @property
    def blocks(self) -> int:
        """Thread blocks."""
        return self.config["blocks"]

    @property
    def clock_count(self) -> int:
        """Numbers of the program's file that are clocks."""
        return 2 * self.multiprocessors * READINGS * 2

    @property
    def mark_count(self) -> int:
        """Numbers behind them that are marks."""
        return self.layers * self.blocks * (len(POINTS) + 1)


@dataclass(frozen=True)
class Timeline:
    """When thread blocks of a layer pass the points, in microseconds."""

    run: Run
    layer_us: float
    """From a layer's last thread block to the next one's."""
    points: dict[str, tuple[float, float, float] | None]
    """First, median and last thread block; None where none passes."""
    clock_ghz: float
    timer_step_ns: float
    """Of the GPU's own clock."""
    clock_error_ns: float
    """Standard error of the time that a multiprocessor's clock stands for."""

    def as_record(self) -> dict[str, Any]:
        """For a JSON line."""
        values = {name: value for name, value in vars(self).items() if name != "run"}
        return {**vars(self.run), **values}


def times_of(clocks: Tensor, marks: Tensor) -> Tensor:
    """Marks as microseconds, NaN where there are none.

    Args:
        clocks: int64 [before and after, multiprocessor, reading, (own clock, nanoseconds)].
        marks: int64 [layer, thread block, points and then multiprocessor + 1].

    Returns:
        float64 [layer, thread block, point].
    """
    start = clocks[..., 1].min()
    own, common = clocks[..., 0].double().mean(-1), (clocks[..., 1] - start).double().mean(-1)
    slope = (common[1] - common[0]) / (own[1] - own[0])
    where = (marks[..., -1:] - 1).clamp(min=0)
    passed = marks[..., :-1]
    nanoseconds = common[0][where] + (passed.double() - own[0][where]) * slope[where]
    return torch.where(passed > 0, nanoseconds * 1e-3, torch.nan)


def timeline_of(run: Run, clocks: Tensor, marks: Tensor) -> Timeline:
    """What the marks of a chain say of its middle layers."""
    times = times_of(clocks, marks)
    ends = times[..., -1].nan_to_num(-torch.inf).amax(-1)
    middle = range(_ENDS, run.layers - _ENDS)
    spreads = torch.stack([_spread(times[layer] - ends[layer - 1]) for layer in middle])
    # Of layers in which somebody passes: whether a ticket is the last one may be chance.
    means = spreads.nanmean(0)
    points: dict[str, tuple[float, float, float] | None] = {}
    for name, (first, median, last) in zip(POINTS, means.tolist(), strict=True):
        points[name] = None if first != first else (first, median, last)
    own, common = clocks[..., 0].double(), (clocks[..., 1] - clocks[..., 1].min()).double()
    slope = (common[1] - common[0]).mean(-1) / (own[1] - own[0]).mean(-1)
    off = (common - common.mean(-1, keepdim=True)) - slope[:, None] * (
        own - own.mean(-1, keepdim=True)
    )
    return Timeline(
        run=run,
        layer_us=float((ends[middle[-1]] - ends[middle[0] - 1]) / len(middle)),
        points=points,
        clock_ghz=float(1 / slope.median()),
        timer_step_ns=float(common.diff(dim=-1).median()),
        clock_error_ns=float(off.std(-1).median() / READINGS**0.5),
    )


def _spread(times: Tensor) -> Tensor:
    """[thread block, point] to [point, (first, median, last)] of those that pass."""
    first = times.nan_to_num(torch.inf).amin(0)
    last = times.nan_to_num(-torch.inf).amax(0)
    spread = torch.stack([first, times.nanmedian(0).values, last], dim=-1)
    return torch.where(spread.isinf(), torch.nan, spread)


def timelines(printed: str, numbers: Tensor) -> Iterator[Timeline]:
    """What the program printed, one JSON object a line, and the numbers of its file."""
    at = 0
    for line in printed.splitlines():
        if not (line.startswith("{") and line.endswith("}")):
            continue
        run = Run(**json.loads(line))
        clocks = numbers[at : at + run.clock_count]
        at += run.clock_count
        marks = numbers[at : at + run.mark_count]
        at += run.mark_count
        yield timeline_of(
            run,
            clocks.view(2, run.multiprocessors, READINGS, 2),
            marks.view(run.layers, run.blocks, len(POINTS) + 1),
        )


def table_of(found: Sequence[Timeline]) -> list[str]:
    """Lines for a configuration: a column for each start of the next kernel."""
    width = 26
    lines = [
        found[0].run.title,
        f"{'':18}" + "".join(f"{t.run.start:>{width}}" for t in found),
    ]
    layer = [f"{t.layer_us:.2f} (unmarked {t.run.plain_us:.2f})" for t in found]
    lines.append(f"{'us a layer':18}" + "".join(f"{text:>{width}}" for text in layer))
    for name in POINTS:
        cells = [_cell(t.points[name]) for t in found]
        lines.append(f"{name:18}" + "".join(f"{text:>{width}}" for text in cells))
    return lines


def _cell(spread: tuple[float, float, float] | None) -> str:
    return "-" if spread is None else "".join(f"{value:8.2f}" for value in spread)


def print_tables(found: Sequence[Timeline]) -> None:
    """One table for all starts of a configuration."""
    print(EXPLANATION)
    for name, meaning in POINTS.items():
        print(f"  {name:18} {meaning}")
    groups: dict[str, list[Timeline]] = {}
    for timeline in found:
        groups.setdefault(timeline.run.title, []).append(timeline)
    for group in groups.values():
        print()
        print("\n".join(table_of(group)))
    for name in ("clock_ghz", "timer_step_ns", "clock_error_ns"):
        values = sorted(getattr(timeline, name) for timeline in found)
        print(f"{name}: {values[0]:.4g} to {values[-1]:.4g}")


def measure(tokens: Sequence[int], budget: float) -> tuple[list[Timeline], str]:
    """Run the program; also why it said no more, empty where it ended well."""
    program = gpu_programs.build(NAME)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "marks"
        file.touch()
        failure = ""
        try:
            printed = gpu_programs.run(program, str(file), *map(str, tokens), timeout=budget)
        except gpu_programs.ProgramError as error:
            printed, failure = error.printed, str(error)
        raw = file.read_bytes() or bytes(8)
    whole = bytearray(raw[: len(raw) // 8 * 8])  # a program that was stopped may have cut one
    return list(timelines(printed, torch.frombuffer(whole, dtype=torch.int64))), failure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.timeline")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=_TOKENS, help="1 to 16 each; skinny only"
    )
    parser.add_argument("--budget", type=float, default=30.0, help="seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    device = named_device()
    found, failure = measure(options.tokens, options.budget)
    for timeline in found:
        append_record(NAME, timeline.as_record(), device, options.results)
    if found:
        print_tables(found)
    if failure:
        print(f"failed: {failure}")
    return 1 if failure else 0


if __name__ == "__main__":
    raise SystemExit(main())
