"""The folder of a streaming job beside its output: what it works on, and what is finished."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from secateur.checkpoint.files import read_json
from secateur.checkpoint.write import space_errors
from secateur.errors import SecateurError
from secateur.streaming.changes import changes

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

    Args:
        output: what the job will write, without links.
        resume: go on with an interrupted job.

    Raises:
        SecateurError: an interrupted job is there and is not to be resumed, or the other way round;
            or another process works on it.
    """
    is_there = (job_folder(output) / _JOB_FILE).is_file()
    if is_there:
        with (job_folder(output) / _LOCK_FILE).open("w") as lock:
            _take(lock, output)
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


def has_ended(output: Path) -> bool:
    """Whether a job's weights became the output, and it was killed before it could tidy up."""
    folder = job_folder(output)
    return (folder / _JOB_FILE).is_file() and not (folder / WEIGHTS_FOLDER).exists()


def bytes_in_job(output: Path) -> int:
    """What an interrupted job takes on the disk."""
    return sum(path.stat().st_size for path in job_folder(output).rglob("*") if path.is_file())


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
    made = [parent for parent in folder.parents if not parent.exists()]
    with space_errors(output):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as lock:
        _take(lock, output)
        begun = folder / _JOB_FILE
        if begun.is_file():
            _require_same(read_json(begun), facts, output)
        try:
            if not begun.is_file():
                _begin(folder, facts)
            yield folder
        except BaseException:
            if not any(folder.glob("block-*.json")):
                _remove(folder, made)
            raise


def _take(lock: IO[str], output: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SecateurError(f"another process is working on {output}") from None


def _begin(folder: Path, facts: Facts) -> None:
    # What a job left that was killed while it tidied up must not count.
    _empty(folder, {_LOCK_FILE})
    # The facts come last: where they are, there are weights, or these became the output.
    with space_errors(folder):
        (folder / WEIGHTS_FOLDER).mkdir()
    write_aside(folder / _JOB_FILE, json.dumps(facts, indent=2))


def close_job(folder: Path) -> None:
    """Remove a job whose output is in place."""
    # Killed on the way, it can still be told from a job that has not begun.
    _empty(folder, {_LOCK_FILE, _JOB_FILE})
    _remove(folder, [])


def _empty(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _remove(folder: Path, made: list[Path]) -> None:
    """Remove a job's folder, and the folders that were made for it if nothing else is there."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in made:
        with suppress(OSError):
            parent.rmdir()


def write_aside(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, also after a power cut.

    Raises:
        OutOfSpaceError: the disk is full.
    """
    aside = path.with_name(f"{path.name}.partial")
    with space_errors(path):
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        flush_names(path.parent)


def flush_names(folder: Path) -> None:
    """Have what was renamed in a folder on the disk before anything that comes later."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_same(before: Facts, now: Facts, output: Path) -> None:
    # What was written went through JSON, which knows no tuples.
    now = json.loads(json.dumps(now))
    found = [
        f"{kind}: {change}"
        for kind in dict.fromkeys([*before, *now])
        for change in changes(before.get(kind, {}), now.get(kind, {}))
    ]
    if found:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more changes" if found[3:] else "")
        raise SecateurError(
            f"the interrupted run of {output} cannot be resumed, its result would be another one. "
            f"{shown}. Undo the change, or delete {job_folder(output)} to start over"
        )
