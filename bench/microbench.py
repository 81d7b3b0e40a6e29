"""What the GPU does at best, piece by piece, beside what the kernels' design counts on.

    python -m bench.microbench
    python -m bench.microbench memory launch --budget 60

Programs of `bench/microbenchmarks`, each measurement one line of `results/microbenchmarks.jsonl`
with the device, its driver and its clocks. A figure that is far from the prediction changes the
design: `PREDICTED` says of each what hangs on it.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import gpu_programs
from bench.exit_status import AGAIN
from bench.kernel_records import RESULTS, append_record
from bench.kernel_summary import DEVICE
from bench.microbench_predictions import Prediction, prediction_of
from bench.named_device import named_device
from secateur_kernels.dispatch.problem import device_facts

NAME = "microbenchmarks"
# The most telling first.
PROGRAMS = ("launch", "tensor", "fed", "memory", "boxes", "cluster", "shared")
# No program takes that long: one that does hangs, and must not take the others' time.
_MOST_SECONDS = 25.0


@dataclass(frozen=True)
class Reading:
    """One measurement."""

    program: str
    name: str
    value: float
    unit: str

    @property
    def prediction(self) -> Prediction | None:
        """What was expected on an H200; None where nothing was."""
        return prediction_of(self.name)

    def as_record(self) -> dict[str, Any]:
        """For a JSON line."""
        expected = self.prediction
        values = {"program": self.program, "name": self.name, "value": self.value}
        predicted = None if expected is None else expected.value
        return {**values, "unit": self.unit, "predicted": predicted}


def readings_of(program: str, output: str) -> list[Reading]:
    """What a program printed, one JSON object a line."""
    lines = [line for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    parsed = [json.loads(line) for line in lines]
    return [Reading(program, p["name"], float(p["value"]), p["unit"]) for p in parsed]


def line_of(reading: Reading) -> str:
    """The measurement, the prediction beside it, and where that comes from."""
    line = f"{reading.name:58} {reading.value:9.4g} {reading.unit:8}"
    expected = reading.prediction
    if expected is None:
        return line.rstrip()
    share = reading.value / expected.value
    return f"{line} predicted {expected.value:7.4g} ({share:5.2f} of it): {expected.why}"


def measure(programs: Sequence[str], budget: float) -> Iterator[tuple[str, list[Reading], str]]:
    """Run programs until the budget is spent.

    Yields:
        each program's name, its readings, and why it said no more; empty where it ended well.
    """
    started = time.monotonic()
    with suppress(RuntimeError):  # below each says for itself what is wrong
        gpu_programs.build_all(programs)
    for name in programs:
        left = budget - (time.monotonic() - started)
        if left <= 0:
            return
        try:
            program = gpu_programs.build(name)
            output, failure = gpu_programs.run(program, timeout=min(left, _MOST_SECONDS)), ""
        except gpu_programs.ProgramError as error:
            output, failure = error.printed, str(error)
        except RuntimeError as error:
            output, failure = "", str(error)
        yield name, readings_of(name, output), failure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.microbench")
    parser.add_argument("programs", nargs="*", help=f"some of {', '.join(PROGRAMS)}; default: all")
    parser.add_argument("--budget", type=float, default=110.0, help="seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    programs = options.programs or list(PROGRAMS)
    unknown = sorted(set(programs) - set(PROGRAMS))
    if unknown:
        parser.error(f"expected programs of {', '.join(PROGRAMS)}, got {', '.join(unknown)}")
    device = named_device()
    here = device_facts(device).name
    if here != DEVICE:
        print(f"this is {here}: what is predicted is an {DEVICE}'s")
    failed, done = [], []
    for name, readings, failure in measure(programs, options.budget):
        done.append(name)
        for reading in readings:
            append_record(NAME, reading.as_record(), device, options.results)
            print(line_of(reading), flush=True)
        if failure:
            failed.append(name)
            print(f"{name}: failed: {failure}", flush=True)
    left = [name for name in programs if name not in done]
    if failed or left:
        print(f"failed: {', '.join(failed) or 'none'}; left: {', '.join(left) or 'none'}")
    return 1 if failed else AGAIN if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
