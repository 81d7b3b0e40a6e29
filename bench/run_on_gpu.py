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
not fit into the time that is left is cut short, or passed over. After a change of the code, begin
with another `--out`. Needs torch, triton, numpy and pytest; nothing is fetched, and no setting of
the GPU is changed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.exit_status import AGAIN
from bench.gpu_steps import FIRST, ROOT, TABLES, Step, steps

OUT = ROOT / "runs" / "gpu"


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: str
    status: int
    """Exit status; 124 where it had to be stopped, 0 where it was left out."""
    seconds: float
    last_line: str


def run_step(step: Step, out: Path) -> Outcome:
    """Run a step, its output on the terminal and in `out/<name>.log`."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step.name, 0, 0.0, f"left out: {step.needs} is not there")
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{step.name}.log"
    started = time.monotonic()
    last_line = ""
    with log.open("w", encoding="utf-8") as file:
        # A session of its own: whatever the step starts ends with it.
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        stopped = threading.Event()
        timer = threading.Timer(step.budget + step.grace, _stop, (process, stopped))
        timer.start()
        for line in process.stdout:
            file.write(line)
            print(line, end="", flush=True)
            last_line = line.strip() or last_line
        status = process.wait()
        timer.cancel()
    seconds = time.monotonic() - started
    return Outcome(step.name, 124 if stopped.is_set() else status, seconds, last_line)


def _stop(process: "subprocess.Popen[str]", stopped: threading.Event) -> None:
    if process.poll() is None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """That of this process, with the packages of this checkout in front."""
    folders = [str(ROOT / "kernels"), str(ROOT / "src"), str(ROOT), str(ROOT / "tests")]
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*folders, before] if before else folders)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


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


def run_all(
    chosen: Sequence[Step], out: Path, limit: float, keep_going: bool = False
) -> list[Outcome]:
    """Run steps in order, passing over those for which the limit leaves no room.

    Args:
        chosen: what to run.
        out: folder for logs and the list of what succeeded.
        limit: seconds in all.
        keep_going: after a failure too.
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
    outcomes = run_all(chosen, out, limit, options.keep_going or options.first)
    print("\nstep                     status  seconds  last line")
    for outcome in outcomes:
        print(f"{outcome.step:24} {outcome.status:6} {outcome.seconds:8.0f}  {outcome.last_line}")
    left = [step.name for step in known.values() if step.name not in finished(out)]
    print(f"left: {', '.join(left)}" if left else "all done")
    return max((outcome.status for outcome in outcomes), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
