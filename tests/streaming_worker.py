"""Kills streaming jobs and goes on with them, until all have ended: see streaming/test_killed.py.

    python streaming_worker.py FOLDER RESULTS KIND NUM_KILLS [KIND NUM_KILLS]

KIND is `moments` (random times), `factors` (the same of a job that factors), or `steps`, at which
the child kills itself right before or after it renames or removes a file; what became of its jobs
is in a folder of that name, and what was never killed in one of that name with `-expected`.

It imports everything once and forks a child a run, for which it must never start a thread or
compute anything itself.
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
from streaming_jobs import NUM_BLOCKS, factors, stream

from secateur.streaming.job import job_folder

_STEPS = ("replace", "rename", "unlink", "rmdir")
_MOST_STEPS = 30
_HOMES = ("host", "file")
_FACTORS = factors(method="svd-whitened", budget=0.1, importance="output")


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


def _start(
    folder: Path, output: Path, kind: str, resume: bool, home: str, dies_at: int | None
) -> int:
    """A child that runs the job; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        if dies_at is not None:
            _kill_self_at(dies_at, before=dies_at % 2 == 0)
        options = {"recipe": _FACTORS} if kind == "factors" else {}
        stream(folder, output, resume=resume, activations=home, **options)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _num_finished(output: Path) -> int:
    return len(list(job_folder(output).glob("block-*.json")))


def _ended(child: int, output: Path, kill_after: tuple[int, float] | None) -> bool:
    """Wait for a child, or kill it so many blocks and seconds on; whether it ended by itself.

    Blocks are counted, not only seconds: a busy machine is slow at times.
    """
    status: int | None = None
    if kill_after is not None:
        blocks, seconds = kill_after
        status = _wait_for_blocks(child, output, blocks)
        if status is None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
    if status is None:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the job failed"
    return True


def _wait_for_blocks(child: int, output: Path, blocks: int) -> int | None:
    """Until so many are finished; the status of a child that ended before."""
    while _num_finished(output) < blocks:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    return None


def _kill(folder: Path, results: Path, kind: str, num_kills: int) -> dict[str, Any]:
    """What happened: how many jobs there were, and how many blocks each killed run had finished."""
    started = time.perf_counter()
    expected = results.with_name(f"{kind}-expected")
    assert _ended(_start(folder, expected, kind, False, "host", None), expected, None)
    seconds = time.perf_counter() - started
    chance = random.Random(f"kill {kind}")
    finished: list[int] = []
    jobs = 0
    while len(finished) < num_kills:
        output = results / f"out-{jobs}"
        jobs += 1
        resume = False
        while True:
            kills = len(finished) < num_kills
            at_step = chance.randint(1, _MOST_STEPS) if kills and kind == "steps" else None
            after = None
            before = _num_finished(output)
            # Few blocks on, and not again and again at the end: kills are to fall everywhere.
            ends = before == NUM_BLOCKS and chance.random() < 0.5
            if kills and kind != "steps" and not ends:
                blocks = min(NUM_BLOCKS, before + chance.randint(0, 2))
                after = (blocks, chance.uniform(0, seconds / NUM_BLOCKS))
            child = _start(folder, output, kind, resume, chance.choice(_HOMES), at_step)
            if _ended(child, output, after):
                break
            finished.append(_num_finished(output))
            resume = (job_folder(output) / "job.json").is_file()
            if not resume and output.is_dir():
                break
    return {"jobs": jobs, "finished": finished}


def main(folder: Path, results: Path, *kinds_and_kills: str) -> None:
    """Print what happened by kind, as JSON."""
    told = {}
    for kind, kills in zip(kinds_and_kills[::2], kinds_and_kills[1::2], strict=True):
        (results / kind).mkdir()
        told[kind] = _kill(folder, results / kind, kind, int(kills))
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
