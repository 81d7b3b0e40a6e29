"""Linear layers: ours, cuBLAS and cuSPARSELt against each other, recorded.

    python -m bench.linears --part 1/4 --budget 450
    python -m bench.linears --op low_rank_linear --mode chain --tokens 1,8
    python -m bench.linears --extent quick --shapes goals --tokens 1,8,16,64,128,512,2048

Each part ends within its budget; what is recorded for this machine and these versions is not
measured again, so that the same command goes on where it ended. `--drawn SEED` measures shapes and
numbers of tokens that nobody chose. `--extent quick` times our compiled kernels against dense
products, few times each, `--extent competitors` cuSPARSELt as well; a run of a larger extent
measures the same again. See `linear_timing.py` for what is timed. A candidate that kills the
process (`--patience` for what hangs) is left out of the job by the next one, and out of all others
after the second time; what it is of lies beside the records, in `linears.attempts.jsonl`.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import Ceilings, measure_ceilings
from bench.exit_status import AGAIN, BROKEN
from bench.extent import EXTENTS, FULL, Extent, covers
from bench.kernel_records import (
    RESULTS,
    append_record,
    library_fingerprint,
    made_here,
    read_records,
)
from bench.linear_operands import LOW_RANK, SPARSE, Operands, make_operands
from bench.linear_timing import MODES, SERIAL, Measured, measure
from bench.linear_tries import Tries
from bench.named_device import named_device
from bench.shapes import SHAPES_BY_NAME, TOKENS, WeightShape, drawn, shape_of
from secateur_kernels.testing.attempts import Attempts, BrokenContextError, check_usable

NAME = "linears"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# In a chain of layers only few tokens matter: decode.
CHAIN_TOKENS = 128
# Of the whole result, relative: one rounding to bf16 makes 0.0017, two make 0.0025.
LARGEST_ERROR = 0.01


@dataclass(frozen=True)
class Job:
    """One line of the records."""

    op: str
    mode: str
    shape: WeightShape
    m: int
    dtype: str
    seed: int | None = None
    """Of `drawn`, where the shape comes from there."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells records apart."""
        return (self.op, self.mode, self.shape.n, self.shape.k, self.m, self.dtype, self.seed)

    def __str__(self) -> str:
        return f"{self.op} {self.mode} {self.shape} M={self.m} {self.dtype}"


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """As `Job.key`, of a record."""
    n, k = record["shape"]
    seed = record.get("seed")
    return (record["op"], record["mode"], n, k, record["tokens"], record["dtype"], seed)


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All jobs of a command line, those of one weight together."""
    if options.drawn is not None:
        return [
            Job(SPARSE, "isolated", shape, m, options.dtype, options.drawn)
            for shape, m in drawn(options.drawn)
        ]
    jobs = []
    for op in options.op:
        for shape in options.shapes:
            for mode in options.mode:
                counts = [m for m in options.tokens if mode == "isolated" or m <= CHAIN_TOKENS]
                jobs += [Job(op, mode, shape, m, options.dtype) for m in counts]
    return jobs


def part_of(jobs: list[Job], part: int, parts: int) -> list[Job]:
    """The jobs of one part: whole weights, so shared out that parts take about as long.

    A weight costs what it takes to make and to read, roughly its size; small ones have a floor.
    """
    weights: dict[tuple[str, WeightShape], list[Job]] = {}
    for job in jobs:
        weights.setdefault((job.op, job.shape), []).append(job)
    costs = {key: len(group) * (4e7 + key[1].n * key[1].k) for key, group in weights.items()}
    shares: list[tuple[float, list[Job]]] = [(0.0, []) for _ in range(parts)]
    for key in sorted(costs, key=lambda key: -costs[key]):
        least = min(range(parts), key=lambda index: shares[index][0])
        cost, share = shares[least]
        shares[least] = (cost + costs[key], share + weights[key])
    return shares[part - 1][1]


def run(
    jobs: Sequence[Job],
    device: torch.device,
    folder: Path = RESULTS,
    budget: float = float("inf"),
    extent: Extent = FULL,
    attempts: Attempts | None = None,
) -> Iterator[tuple[Job, Measured | str]]:
    """Measure what is not recorded yet, recording one line at a time, until the budget is spent.

    Args:
        jobs: those of one weight one after the other.
        device: where.
        folder: of the records.
        budget: seconds; a measurement that has begun is finished.
        extent: what of each.
        attempts: what earlier processes died of.

    Yields:
        each job with its times, or why there are none.

    Raises:
        BrokenContextError: CUDA cannot be used any more.
    """
    attempts = attempts or Attempts(None)
    started = time.monotonic()
    done = recorded(device, folder, extent)
    waiting = [job for job in jobs if job.key not in done]
    if not waiting:
        return
    ceilings = measure_ceilings(device)
    operands: Operands | None = None
    for job in waiting:
        if time.monotonic() - started > budget:
            return
        tries = Tries(attempts, str(job), device)
        if tries.is_hopeless():
            yield job, "failed: left out: a process died of it"
            continue
        try:
            if operands is None or (operands.op, operands.shape) != (job.op, job.shape):
                operands = None  # frees the old ones before the new ones are made
                dtype = DTYPES[job.dtype]
                operands = make_operands(job.op, job.shape, dtype, device, extent.competitors)
            often = (extent.rounds, extent.repeats)
            measured = measure(operands, job.m, job.mode, device, *often, extent.ours, tries)
        except BrokenContextError:
            raise
        except Exception as error:  # one job must not end the others
            check_usable(device)
            yield job, f"failed: {error}"
            continue
        values = _record(job, operands, measured, ceilings) | {"extent": extent.name}
        append_record(NAME, values, device, folder)
        yield job, measured


def recorded(device: torch.device, folder: Path, extent: Extent) -> set[tuple[Any, ...]]:
    """Keys of the jobs that need not be measured again for this device and these versions."""
    records = (r for r in read_records(NAME, folder) if made_here(r, device))
    return {key_of(r) for r in records if covers(r.get("extent", FULL.name), extent.name)}


def _record(job: Job, operands: Operands, measured: Measured, ceilings: Ceilings) -> dict[str, Any]:
    return {
        "op": job.op,
        "mode": job.mode,
        "shape": [job.shape.n, job.shape.k],
        "layers": list(job.shape.layers),
        "rank": job.shape.rank if job.op == LOW_RANK else 0,
        "tokens": job.m,
        "dtype": job.dtype,
        "seed": job.seed,
        "weight_bytes": operands.num_bytes,
        "read_ceiling": ceilings.read,
        **measured.as_record(),
    }


def line_of(job: Job, measured: Measured | str) -> str:
    """One line of the table that a run prints."""
    if isinstance(measured, str):
        return f"{job}: {measured}"
    dense = measured.fastest("dense")
    assert dense is not None
    cells = [f"{job.op:16} {job.mode:8} {job.shape!s:13} M={job.m:<5} dense {dense[1]:8.1f} us"]
    for kind in ("two products", "cusparselt"):
        found = measured.fastest(kind)
        if found:
            cells.append(f"{kind} {dense[1] / found[1]:.2f}")
    ours = [name for name in measured.timings if name.startswith("ours")]
    cells += [f"{name[5:]} {dense[1] / measured.microseconds(name):.2f}" for name in ours]
    if SERIAL in measured.timings:
        cells.append(f"{SERIAL} {dense[1] / measured.microseconds(SERIAL):.2f}")
    wrong = [f"{n} {e:.2g}" for n, e in measured.errors.items() if not e < LARGEST_ERROR]
    cells += [f"WRONG: {', '.join(wrong)}"] if wrong else []
    bad = ("failed", "left out")
    failed = [f"{name} {note}" for name, note in measured.notes.items() if note.startswith(bad)]
    return "  ".join(cells) + "".join(f"\n  {line}" for line in failed)


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the module's docstring says what it does."""
    parser = argparse.ArgumentParser(prog="python -m bench.linears")
    parser.add_argument("--part", default="1/1", help="k/n: the k-th of n parts")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--op", nargs="+", choices=[SPARSE, LOW_RANK], default=[SPARSE, LOW_RANK])
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--tokens", type=_numbers, default=list(TOKENS), help="such as 1,8,64")
    named = ", ".join(SHAPES_BY_NAME)
    parser.add_argument("--shapes", default="all", help=f"{named}, or such as 4096x4096")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--drawn", type=int, metavar="SEED", help="20 shapes drawn by a seed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--patience", type=float, help="seconds after which a candidate hangs")
    parser.add_argument("--extent", choices=EXTENTS, default=FULL.name, help="what of each")
    parser.add_argument("--rounds", type=int, help="default: that of the extent")
    parser.add_argument("--repeats", type=int, help="default: that of the extent")
    options = parser.parse_args(arguments)
    extent = EXTENTS[options.extent]
    rounds, repeats = options.rounds or extent.rounds, options.repeats or extent.repeats
    options.extent = replace(extent, rounds=rounds, repeats=repeats)
    options.shapes = _shapes(options.shapes)
    options.part, options.parts = (int(number) for number in options.part.split("/"))
    if not 1 <= options.part <= options.parts:
        parser.error(f"expected --part k/n with 1 <= k <= n, got {options.part}/{options.parts}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _shapes(text: str) -> tuple[WeightShape, ...]:
    if text in SHAPES_BY_NAME:
        return SHAPES_BY_NAME[text]
    sizes = (size.split("x") for size in text.split(","))
    return tuple(shape_of(int(n), int(k)) for n, k in sizes)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    device = named_device(options.device)
    jobs = part_of(jobs_of(options), options.part, options.parts)
    if options.drawn is not None:
        print(f"shapes and tokens drawn with seed {options.drawn}")
    notes = options.results / f"{NAME}.attempts.jsonl"
    attempts = Attempts(notes, options.patience, build=library_fingerprint())
    failed = []
    wanted = (options.results, options.budget, options.extent, attempts)
    try:
        for job, measured in run(jobs, device, *wanted):
            print(line_of(job, measured), flush=True)
            failed += [job.key] if isinstance(measured, str) else []
    except BrokenContextError as error:
        print(f"CUDA cannot be used any more: {error}")
        return BROKEN
    for death in attempts.deaths:
        print(f"a process died of {death.what}: {death.first_line}")
    done = recorded(device, options.results, options.extent)
    left = sum(job.key not in done and job.key not in failed for job in jobs)
    print(f"{left} of {len(jobs)} left: run again" if left else f"all {len(jobs)} are recorded")
    if failed or attempts.deaths:
        print(f"{len(failed)} jobs failed, {len(attempts.deaths)} processes died")
        return 1
    return AGAIN if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
