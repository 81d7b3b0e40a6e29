"""Scoring, selecting and packing on a GPU against the copy ceiling and the published code.

    python -m bench.packing --budget 300

Work is timed on copies of one weight that overflow the caches, in CUDA graphs; the published loop
issues thousands of small kernels and is timed as it is used, without a graph.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.ceilings import Ceilings, measure_ceilings
from bench.exit_status import AGAIN
from bench.kernel_records import RESULTS, append_record, made_here, read_records
from bench.named_device import named_device
from bench.published import wanda_half_of_each_row, wanda_two_of_four
from secateur_kernels.pack24.op import Form, pack24
from secateur_kernels.testing.attempts import check_usable
from secateur_kernels.threshold.op import keep_largest_per_row
from secateur_kernels.timing import copies_to_rotate, time_in_turns
from secateur_kernels.unpack24.op import unpack24

NAME = "packing"
SHAPES = ((14336, 4096), (4096, 4096), (28672, 8192))
ROUNDS = 25
_LOOP_ROUNDS = 5


@dataclass(frozen=True)
class Work:
    """One thing to be timed, the bytes that it has to move, and what the published code does."""

    name: str
    call: Callable[[int], object]
    num_bytes: int
    published: Callable[[], object] | None = None


def works_for(n: int, k: int, device: torch.device) -> list[Work]:
    """Everything that is timed for a weight [n, k] in bf16."""
    torch.manual_seed(0)
    weight = torch.empty(n, k, dtype=torch.bfloat16, device=device).normal_()
    norm = torch.rand(k, device=device)
    copies = copies_to_rotate(weight.nbytes, device)
    weights = [weight.clone() for _ in range(copies)]
    scores = [w.float().abs() * norm for w in weights]
    packed = pack24(weight, want=("fragment",)).fragment
    assert packed is not None
    fragments = [replace(packed, data=packed.data.clone()) for _ in range(copies)]

    def pack(name: str, want: tuple[Form, ...], written: float, **score: Tensor) -> Work:
        def call(index: int) -> object:
            return pack24(weights[index], want=want, **score)  # type: ignore[arg-type]

        def published() -> object:
            return wanda_two_of_four(weight.float().abs() * norm)

        return Work(name, call, int(n * k * (2 + written)), published)

    return [
        pack("Wanda 2:4, score to packed", ("fragment",), 1.125, input_norm=norm),
        pack("magnitude 2:4, score to packed", ("fragment",), 1.125),
        pack("Wanda 2:4, score to checkpoint form", ("canonical",), 1.125, input_norm=norm),
        pack("Wanda 2:4, score to mask", ("mask",), 1.0, input_norm=norm),
        Work("unpack to dense", lambda i: unpack24(fragments[i]), int(n * k * 3.125)),
        Work(
            "largest half of each row",
            lambda i: keep_largest_per_row(scores[i], k // 2),
            n * k * 5,
            lambda: wanda_half_of_each_row(scores[0]),
        ),
    ]


def measure(work: Work, device: torch.device, copies: int, rounds: int) -> dict[str, Any]:
    """Microseconds of ours, and milliseconds of the published code where there is some."""
    timing = time_in_turns({work.name: work.call}, device, copies, rounds)[work.name]
    record: dict[str, Any] = {
        "work": work.name,
        "microseconds": round(timing.median, 3),
        "quartiles": [round(timing.lower_quartile, 3), round(timing.upper_quartile, 3)],
        "bytes": work.num_bytes,
    }
    if work.published is not None:
        record["published_ms"] = 1e3 * _seconds(work.published, device)
    return record


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of a few calls by the clock, waiting for the device."""
    samples = []
    for _ in range(_LOOP_ROUNDS + 1):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(
    shapes: Sequence[tuple[int, int]],
    device: torch.device,
    folder: Path = RESULTS,
    budget: float = float("inf"),
    rounds: int = ROUNDS,
) -> Iterator[dict[str, Any]]:
    """Measure what is not recorded yet for this machine and these versions, until the budget ends.

    Yields:
        each record as written, or one that only says what failed.

    Raises:
        BrokenContextError: CUDA cannot be used any more.
    """
    started = time.monotonic()
    old = [r for r in read_records(NAME, folder) if made_here(r, device)]
    done = {(tuple(record["shape"]), record["work"]) for record in old}
    ceilings: Ceilings | None = None
    for n, k in shapes:
        works = works_for(n, k, device)
        copies = copies_to_rotate(n * k * 2, device)
        for work in works:
            if ((n, k), work.name) in done:
                continue
            if time.monotonic() - started > budget:
                return
            ceilings = ceilings or measure_ceilings(device)
            try:
                values = measure(work, device, copies, rounds)
            except Exception as error:  # those of Triton are no RuntimeError
                check_usable(device)
                yield {"shape": [n, k], "work": work.name, "failed": str(error)}
                continue
            values |= {"shape": [n, k], "copy_ceiling": ceilings.copy}
            yield append_record(NAME, values, device, folder)


def line_of(record: dict[str, Any]) -> str:
    """One line of the table that a run prints."""
    n, k = record["shape"]
    if "failed" in record:
        return f"{record['work']:38} {n} x {k}  failed: {record['failed']}"
    rate = record["bytes"] / record["microseconds"] * 1e6
    line = f"{record['work']:38} {n} x {k}  {record['microseconds']:9.1f} us"
    line += f"  {rate / 1e9:6.0f} GB/s  {rate / record['copy_ceiling']:4.0%} of the copy ceiling"
    if "published_ms" in record:
        times = 1e3 * record["published_ms"] / record["microseconds"]
        line += f"  published {record['published_ms']:.2f} ms, {times:.0f} times ours"
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.packing")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--shapes", help="such as 14336x4096,4096x4096")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    device = named_device(options.device)
    shapes: Sequence[tuple[int, int]] = SHAPES
    if options.shapes:
        sizes = (size.split("x") for size in options.shapes.split(","))
        shapes = [(int(n), int(k)) for n, k in sizes]
    started = time.monotonic()
    failed = 0
    for record in run(shapes, device, options.results, options.budget, options.rounds):
        print(line_of(record), flush=True)
        failed += "failed" in record
    if failed:
        return 1
    return AGAIN if time.monotonic() - started > options.budget else 0


if __name__ == "__main__":
    raise SystemExit(main())
