"""Everything that a machine with an NVIDIA GPU is needed for, step by step.

    python -m bench.run_on_gpu --list
    python -m bench.run_on_gpu facts build quick
    python -m bench.run_on_gpu --first --minutes 9
    python -m bench.run_on_gpu --all --limit 540

`--first` is for a short visit: the probe of the layout, a quick check of each compiled kernel,
quick benchmarks, then as much of the rest as fits; after a failure it goes on. `--all` runs, in
order, what has not succeeded yet, for as long as the limit allows: repeat it until it says that all
is done. Every step ends within its budget and prints a short table; its whole output goes to a log
in `--out` (default `runs/gpu`). Steps whose own budget ends them go on where they ended; what does
not fit into the time that is left is cut short, or passed over. A step whose process dies, or hangs
in a kernel, is started again without what it died of (`secateur_kernels/testing/attempts.py`).
After a change of the code, begin with another `--out` and `--results`. Needs torch, triton, numpy
and pytest; nothing is fetched, and no setting of the GPU is changed.
"""

import argparse
import json
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.exit_status import AGAIN, BROKEN
from bench.gpu_steps import FIRST, ROOT, TABLES, Step, steps
from bench.step_process import STOPPED, Ended, run_process

OUT = ROOT / "runs" / "gpu"
_MOST_STARTS = 12


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: str
    status: int
    """Exit status; 124 where it had to be stopped, minus a signal, 0 where it was left out."""
    seconds: float
    last_line: str


def run_step(step: Step, out: Path) -> Outcome:
    """Run a step, its output on the terminal and in `out/<name>.log`."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step.name, 0, 0.0, f"left out: {step.needs} is not there")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (out / f"{step.name}.log").open("w", encoding="utf-8") as log:
        ended, left = _ended(step, log, step.budget + step.grace), 0.0
        for _ in range(1, _MOST_STARTS):
            left = step.budget + step.grace - (time.monotonic() - started)
            died = ended.status in (BROKEN, STOPPED) or ended.status < 0
            again = step.again(left) if died else None
            if again is None:
                break
            told = f"--- {step.name}: {ended.why or 'it cannot go on'}: started again"
            print(told, flush=True)
            print(told, file=log, flush=True)
            ended = _ended(again, log, left)
    seconds = time.monotonic() - started
    last_line = f"{ended.why}; last: {ended.last_line}" if ended.why else ended.last_line
    return Outcome(step.name, ended.status, seconds, last_line)


def _ended(step: Step, log: IO[str], seconds: float) -> Ended:
    try:
        return run_process(step.command, ROOT, _environment(), log, seconds, step.silence)
    except OSError as error:
        return Ended(1, f"cannot be started: {error}", "")


def _environment() -> dict[str, str]:
    """That of this process, with the packages of this checkout in front."""
    folders = [str(ROOT / "kernels"), str(ROOT / "src"), str(ROOT), str(ROOT / "tests")]
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*folders, before] if before else folders)
    told = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    # The tests need no plug-in, and nobody knows what else is installed there.
    told["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return {**os.environ, **told, "PYTHONPATH": path}


def finished(out: Path) -> set[str]:
    """Steps that have succeeded."""
    path = out / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {line["step"] for line in map(json.loads, lines) if line["status"] == 0}


def note(outcome: Outcome, out: Path) -> None:
    """Remember how a step ended."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(vars(outcome)) + "\n")


def pack(out: Path, archive: Path) -> None:
    """All that is in `out` as one compressed file, written aside and renamed."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    aside = archive.with_name(f".{archive.name}.partial")
    with tarfile.open(aside, "w:gz") as file:
        file.add(out, arcname=out.name)
    aside.replace(archive)


def run_all(
    chosen: Sequence[Step],
    out: Path,
    limit: float,
    keep_going: bool = False,
    archive: Path | None = None,
) -> list[Outcome]:
    """Run steps in order, passing over those for which the limit leaves no room.

    Args:
        chosen: what to run.
        out: folder for logs and the list of what succeeded.
        limit: seconds in all.
        keep_going: after a failure too.
        archive: written anew after each step, so that a run that is cut off leaves what it has.
    """
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for wanted in chosen:
        left = limit - (time.monotonic() - started)
        # The first one is run in any case: a limit below every budget would never get on.
        step = wanted.within(left) or (None if outcomes else wanted)
        if step is None:
            continue
        print(f"--- {step.name}: {' '.join(step.command)}", flush=True)
        outcome = run_step(step, out)
        note(outcome, out)
        if archive is not None:
            try:
                pack(out, archive)
            except OSError as error:  # the steps that follow matter more
                print(f"not packed: {error}", flush=True)
        outcomes.append(outcome)
        if outcome.status not in (0, AGAIN) and not keep_going:
            break
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run_on_gpu")
    parser.add_argument("steps", nargs="*", help="names of steps, in any number")
    parser.add_argument("--list", action="store_true", help="name all steps")
    parser.add_argument("--all", action="store_true", help="all that have not succeeded yet")
    parser.add_argument("--first", action="store_true", help="what a short visit is for")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds in all")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--keep-going", action="store_true", help="after a failure too")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for logs")
    parser.add_argument("--archive", type=Path, help="also keep --out as this .tar.gz")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder for dispatch's table")
    options = parser.parse_args(arguments)
    out, results, tables = (p.resolve() for p in (options.out, options.results, options.tables))
    known = {step.name: step for step in steps(out, results, tables)}
    unknown = [name for name in options.steps if name not in known]
    if unknown:
        parser.error(f"expected steps of {', '.join(known)}, got {', '.join(unknown)}")
    chosen = [known[name] for name in options.steps]
    if options.first:
        chosen += [known[name] for name in FIRST if name not in finished(out)]
    if options.all:
        chosen += [step for step in known.values() if step.name not in finished(out)]
    if options.list or not chosen:
        for step in known.values():
            done = "done" if step.name in finished(out) else ""
            print(f"{step.name:24} {step.budget:5.0f} s  {done}")
        return 0
    limit = min(options.limit, 60 * options.minutes) if options.minutes else options.limit
    archive = options.archive.resolve() if options.archive else None
    outcomes = run_all(chosen, out, limit, options.keep_going or options.first, archive)
    print("\nstep                     status  seconds  last line")
    for outcome in outcomes:
        print(f"{outcome.step:24} {outcome.status:6} {outcome.seconds:8.0f}  {outcome.last_line}")
    left = [step.name for step in known.values() if step.name not in finished(out)]
    print(f"left: {', '.join(left)}" if left else "all done")
    return max((abs(outcome.status) for outcome in outcomes), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
