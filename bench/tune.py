"""Fill dispatch's table for the shapes of known models, a part at a time.

    python -m bench.tune --part 1/4 --budget 450 --output kernels/secateur_kernels/dispatch/tables
    python -m bench.tune --shapes goals --backends cuda two_gemms unpack --budget 90

What the table of this device holds already is not measured again: an entry that was made without
some `--backends` is, with these added, once they are asked for. Triton's candidates take seconds of
compilation each. With `--patience`, what hangs or breaks CUDA ends the process, and the next one
leaves that weight at that number of tokens out. `secateur tune` does the same for the shapes of one
model and keeps them on the machine.
"""

import argparse
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

from bench.exit_status import AGAIN, BROKEN
from bench.kernel_records import library_fingerprint
from bench.named_device import named_device
from bench.shapes import SHAPES_BY_NAME, WeightShape
from secateur_kernels.dispatch.problem import Op, device_facts
from secateur_kernels.dispatch.table import Entry, Table, load_table, table_path
from secateur_kernels.settings import cache_folder
from secateur_kernels.testing.attempts import Attempts, BrokenContextError, check_usable
from secateur_kernels.tune import DEFAULT_TOKENS, TuneShape, empty_table, tune_shape

OPS: tuple[Op, ...] = ("sparse24_linear", "low_rank_linear")
_Asked = tuple[TuneShape, Sequence[int], torch.dtype, torch.device, int, Collection[str]]
"""Arguments of `tune_shape`."""
BACKENDS = ("cuda", "triton", "two_gemms", "unpack", "dense", "reference")


def shapes_to_tune(ops: Sequence[Op], shapes: Sequence[WeightShape]) -> list[TuneShape]:
    """Every shape with every op; factors with a quarter of the smaller side as their rank."""
    return [
        TuneShape(op, shape.n, shape.k, 0 if op == "sparse24_linear" else shape.rank)
        for op in ops
        for shape in shapes
    ]


def _entries_of(table: Table, shape: TuneShape) -> dict[int, Entry]:
    """Tokens -> what the table has of a shape in bf16."""
    size = (shape.op, shape.n, shape.k, shape.rank, "bfloat16")
    return {e.m: e for e in table.entries if (e.op, e.n, e.k, e.rank, e.dtype) == size}


def missing(
    table: Table, shape: TuneShape, tokens: Sequence[int], backends: Collection[str] = BACKENDS
) -> list[int]:
    """Numbers of tokens for which the table lacks times of a shape, of any of these backends."""
    there = _entries_of(table, shape)
    return [m for m in tokens if m not in there or set(backends) & set(there[m].left_out)]


def run(
    shapes: Sequence[TuneShape],
    tokens: Sequence[int],
    device: torch.device,
    folder: Path,
    budget: float,
    rounds: int = 15,
    backends: Collection[str] = BACKENDS,
    attempts: Attempts | None = None,
) -> Iterator[tuple[Entry | None, list[str]]]:
    """Measure what is missing and save after every number of tokens.

    Nothing begins that would end after the budget if it took as long as the longest so far. What
    an entry holds already is measured anew with what it lacks: only times of one run compare.

    Args:
        shapes: weights, one after the other.
        tokens: numbers of tokens.
        device: where.
        folder: of the table.
        budget: seconds.
        rounds: of each candidate.
        backends: whose candidates are timed.
        attempts: what earlier processes died of; None forgets it.

    Yields:
        each new entry, None where none came out, and what could not run.

    Raises:
        BrokenContextError: CUDA cannot be used any more.
    """
    attempts = attempts or Attempts(None)
    died = {death.what for death in attempts.deaths}
    started = before = time.monotonic()
    longest = 0.0
    path = table_path(folder, device_facts(device))
    table = load_table(path) if path.is_file() else empty_table(device)
    for shape in shapes:
        lacking = missing(table, shape, tokens, backends)
        wanted = [m for m in lacking if _what(shape, m) not in died]
        if not wanted or before - started + longest > budget:
            continue
        there = _entries_of(table, shape)
        held = {x.backend for m in wanted if m in there for x in there[m].measurements}
        timed = {*backends, *held}
        asked = (shape, wanted, torch.bfloat16, device, rounds, timed)
        for entry, failed in _one_by_one(asked, attempts):
            if entry is not None:
                table = table.merged(empty_table(device).with_entries([entry]))
                table.save(path)
            yield entry, failed
            now = time.monotonic()
            longest, before = max(longest, now - before), now
            if now - started + longest > budget:
                break


def _what(shape: TuneShape, m: int) -> str:
    return f"{shape} M={m}"


def _one_by_one(asked: _Asked, attempts: Attempts) -> Iterator[tuple[Entry | None, list[str]]]:
    """What `tune_shape` makes of its arguments; a failure at some tokens leaves others alone."""
    shape, waiting, dtype, device, *rest = asked
    while waiting:
        entries = tune_shape(shape, waiting, dtype, device, *rest)
        for m in tuple(waiting):
            waiting = waiting[1:]
            try:
                with attempts.trying(_what(shape, m), shape.op):
                    found = _next(entries, device)
            except BrokenContextError:
                raise
            except Exception as error:  # it may ask for too much memory
                yield None, [f"{_what(shape, m)}: {error}"]
                break
            yield found


def _next(
    entries: Iterator[tuple[Entry, list[str]]], device: torch.device
) -> tuple[Entry, list[str]]:
    try:
        return next(entries)
    except Exception:
        check_usable(device)
        raise


def line_of(entry: Entry) -> str:
    """The fastest candidate of each backend."""
    best: dict[str, float] = {}
    for measured in entry.measurements:
        best[measured.backend] = min(
            measured.microseconds, best.get(measured.backend, float("inf"))
        )
    times = "  ".join(f"{name} {us:.1f}" for name, us in sorted(best.items(), key=lambda p: p[1]))
    rank = f" rank {entry.rank}" if entry.rank else ""
    return f"{entry.op:16} {entry.n} x {entry.k}{rank}  M={entry.m:<5} us: {times}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tune")
    parser.add_argument("--part", default="1/1", help="k/n: the k-th of n parts")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--tokens", default=",".join(map(str, DEFAULT_TOKENS)))
    parser.add_argument("--shapes", choices=SHAPES_BY_NAME, default="all")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=None, help="folder; default: the cache")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--patience", type=float, help="seconds after which one measurement hangs")
    options = parser.parse_args(arguments)
    device = named_device(options.device)
    part, parts = (int(number) for number in options.part.split("/"))
    tokens = [int(number) for number in options.tokens.split(",")]
    folder = options.output or cache_folder()
    everything = shapes_to_tune(options.op, SHAPES_BY_NAME[options.shapes])
    shapes = everything[part - 1 :: parts]
    failures: set[str] = set()
    notes = folder / "tune.attempts.jsonl" if options.patience else None
    attempts = Attempts(notes, options.patience, build=library_fingerprint())
    what = (shapes, tokens, device, folder, options.budget, options.rounds, options.backends)
    try:
        for entry, failed in run(*what, attempts):
            print(line_of(entry) if entry else f"failed: {failed[0]}", flush=True)
            failures |= set(failed)
    except BrokenContextError as error:
        print(f"CUDA cannot be used any more: {error}")
        return BROKEN
    for death in attempts.deaths:
        print(f"a process died of {death.what}: {death.first_line}")
    for failure in sorted(failures):
        print(f"could not run: {failure}")
    path = table_path(folder, device_facts(device))
    table = load_table(path) if path.is_file() else empty_table(device)
    left = sum(len(missing(table, shape, tokens, options.backends)) for shape in shapes)
    print(f"{left} left: run again" if left else f"all in {path}")
    return AGAIN if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
