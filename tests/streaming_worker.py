"""Kills streaming jobs and goes on with them, until all have ended: see streaming/test_killed.py.

    python streaming_worker.py FOLDER RESULTS NUM_KILLS (moments | steps)

It imports everything once and forks a child a run, for which it must never start a thread or
compute anything itself. `moments` are random times; at `steps` the child kills itself right before
or after it renames or removes a file.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from streaming_jobs import stream

from secateur.streaming.job import job_folder

_STEPS = ("replace", "rename", "unlink", "rmdir")
_MOST_STEPS = 30
_HOMES = ("host", "file")


def _kill_self_at(step: int, before: bool) -> None:
    """From now on, count what renames or removes, and die at one of these."""
    count = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if before and count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in _STEPS:
        setattr(os, name, dying(getattr(os, name)))


def _start(folder: Path, output: Path, resume: bool, home: str, dies_at: int | None) -> int:
    """A child that runs the job; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        if dies_at is not None:
            _kill_self_at(dies_at, before=dies_at % 2 == 0)
        stream(folder, output, resume=resume, activations=home)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _ended(child: int, kill_after: float | None) -> bool:
    """Wait for a child, or kill it; whether it ended by itself."""
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the job failed"
    return True


def main(folder: Path, results: Path, num_kills: int, kind: str) -> None:
    """Print what happened: how many runs were killed, and how many blocks each had finished."""
    chance = random.Random(f"kill {kind}")
    started = time.perf_counter()
    assert _ended(_start(folder, results / "expected", False, "host", None), None)
    seconds = time.perf_counter() - started
    finished: list[int] = []
    jobs = 0
    while len(finished) < num_kills:
        output = results / f"out-{jobs}"
        jobs += 1
        resume = False
        while True:
            kills = len(finished) < num_kills
            at_step = chance.randint(1, _MOST_STEPS) if kills and kind == "steps" else None
            after = chance.uniform(0, seconds) if kills and kind == "moments" else None
            child = _start(folder, output, resume, chance.choice(_HOMES), at_step)
            if _ended(child, after):
                break
            finished.append(len(list(job_folder(output).glob("block-*.json"))))
            resume = (job_folder(output) / "job.json").is_file()
            if not resume and output.is_dir():
                break
    print(json.dumps({"jobs": jobs, "finished": finished}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
