"""One step on a machine with a GPU: run to its end, and remembered."""

import json
import os
import shutil
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.exit_status import BROKEN
from bench.gpu_steps import ROOT, Step
from bench.step_process import STOPPED, Ended, run_process

_MOST_STARTS = 12


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: str
    status: int
    """Exit status; 124 where it had to be stopped, minus a signal, 0 where it was left out."""
    seconds: float
    last_line: str


def run_step(step: Step, out: Path, beside: int = 0) -> Outcome:
    """Run a step, its output in `out/<name>.log` and, where it runs alone, on the terminal.

    Args:
        step: what to run.
        out: folder for the log.
        beside: how many others run at the same time: each takes its share of the cores.
    """
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step.name, 0, 0.0, f"left out: {step.needs} is not there")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (out / f"{step.name}.log").open("w", encoding="utf-8") as log:
        ended, left = _ended(step, log, step.budget + step.grace, beside), 0.0
        for _ in range(1, _MOST_STARTS):
            left = step.budget + step.grace - (time.monotonic() - started)
            died = ended.status in (BROKEN, STOPPED) or ended.status < 0
            again = step.again(left) if died else None
            if again is None:
                break
            told = f"--- {step.name}: {ended.why or 'it cannot go on'}: started again"
            print(told, flush=True)
            print(told, file=log, flush=True)
            ended = _ended(again, log, left, beside)
    seconds = time.monotonic() - started
    last_line = f"{ended.why}; last: {ended.last_line}" if ended.why else ended.last_line
    return Outcome(step.name, ended.status, seconds, last_line)


def _ended(step: Step, log: IO[str], seconds: float, beside: int) -> Ended:
    told = (step.command, ROOT, environment(beside), log, seconds, step.silence)
    try:
        return run_process(*told, shown=not beside)
    except OSError as error:
        return Ended(1, f"cannot be started: {error}", "")


def environment(beside: int = 0) -> dict[str, str]:
    """That of this process, with the packages of this checkout in front."""
    folders = [str(ROOT / "kernels"), str(ROOT / "src"), str(ROOT), str(ROOT / "tests")]
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*folders, before] if before else folders)
    told = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    # The tests need no plug-in, and nobody knows what else is installed there.
    told["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if beside:
        threads = str(max(1, (os.cpu_count() or 1) // (beside + 1)))
        told |= {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
    return {**os.environ, **told, "PYTHONPATH": path}


def finished(out: Path) -> set[str]:
    """Steps that have succeeded."""
    return {line["step"] for line in _noted(out) if line["status"] == 0}


def tried(out: Path) -> set[str]:
    """Steps that have ended, in whatever way."""
    return {line["step"] for line in _noted(out)}


def _noted(out: Path) -> list[dict[str, Any]]:
    path = out / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def note(outcome: Outcome, out: Path) -> None:
    """Remember how a step ended."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(vars(outcome)) + "\n")


def pack(out: Path, archive: Path | None) -> None:
    """All that is in `out` as one compressed file, written aside and renamed; None: nothing.

    Where that fails it is said, and no more: the steps that follow matter more.
    """
    if archive is None:
        return
    aside = archive.with_name(f".{archive.name}.partial")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(aside, "w:gz") as file:
            file.add(out, arcname=out.name)
        aside.replace(archive)
    except OSError as error:
        print(f"not packed: {error}", flush=True)
