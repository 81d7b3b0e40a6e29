"""The folder of a streaming job beside its output: what it works on, and what is finished."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.checkpoint.files import read_json
from secateur.errors import SecateurError

_JOB_FILE = "job.json"
_LOCK_FILE = "lock"
WEIGHTS_FOLDER = "weights"

Facts = Mapping[str, Mapping[str, Any]]
"""What a job's result depends on: by kind, such as `recipe`, then by name."""


def job_folder(output: Path) -> Path:
    """Where a job keeps what is finished until the output is complete."""
    return output.parent / f".{output.name}.job"


def check_job(output: Path, resume: bool) -> None:
    """Accept a place for a job, without a look at what an interrupted one worked on.

    Raises:
        SecateurError: an interrupted job is there and is not to be resumed, or the other way round.
    """
    is_there = (job_folder(output) / _JOB_FILE).is_file()
    if is_there and not resume:
        raise SecateurError(
            f"an interrupted run left finished blocks in {job_folder(output)}; go on with it by "
            "resume (--resume), or delete that folder to start over"
        )
    if resume and not is_there:
        raise SecateurError(
            f"there is nothing to resume: no interrupted streaming run of {output} "
            f"(it would have left {job_folder(output)})"
        )


@contextmanager
def open_job(output: Path, facts: Facts) -> Iterator[Path]:
    """Make or reopen a job's folder; while this is open, no other process can.

    The folder stays when an exception passes, so that the job can be resumed, unless no block was
    finished yet. It goes with its last content once the job is through: see `close_job`.

    Args:
        output: what the job will write.
        facts: what its result depends on; those of an interrupted job must be the same.

    Raises:
        SecateurError: another process works on it, or the facts differ; says which.
    """
    folder = job_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SecateurError(f"another process is working on {output}") from None
        begun = folder / _JOB_FILE
        if begun.is_file():
            _require_same(read_json(begun), facts, output)
        else:
            (folder / WEIGHTS_FOLDER).mkdir(exist_ok=True)
            write_aside(begun, json.dumps(facts, indent=2))
        try:
            yield folder
        except BaseException:
            if not any(folder.glob("block-*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def close_job(folder: Path) -> None:
    """Remove a job whose output is in place."""
    shutil.rmtree(folder, ignore_errors=True)


def write_aside(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, also after a power cut."""
    aside = path.with_name(f"{path.name}.partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _require_same(before: Facts, now: Facts, output: Path) -> None:
    # What was written went through JSON, which knows no tuples.
    now = json.loads(json.dumps(now))
    changes = [
        f"{kind}: {name} was {_shown(before, kind, name)}, is {_shown(now, kind, name)}"
        for kind in dict.fromkeys([*before, *now])
        for name in dict.fromkeys([*before.get(kind, {}), *now.get(kind, {})])
        if before.get(kind, {}).get(name) != now.get(kind, {}).get(name)
    ]
    if changes:
        shown = "; ".join(changes[:3]) + (
            f"; and {len(changes) - 3} more changes" if changes[3:] else ""
        )
        raise SecateurError(
            f"the interrupted run of {output} cannot be resumed, its result would be another one. "
            f"{shown}. Undo the change, or delete {job_folder(output)} to start over"
        )


def _shown(facts: Facts, kind: str, name: str) -> str:
    text = str(facts.get(kind, {}).get(name, "absent"))
    return text if len(text) <= 80 else f"{text[:77]}..."
