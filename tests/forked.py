"""Python programs that start at once: forked from a process that has imported Secateur, for to
import it takes longer than most of them run.

A test process has one such server, of multiprocessing's own and without threads. What is forked
from it has streams, an environment, a folder, an exit code and a death of its own, as what
`sys.executable` starts; it differs in what is imported already.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from shutil import rmtree
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import mkdtemp

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "hypothesis", "secateur.cli"])


@dataclass(frozen=True)
class Forked:
    """A program that may still run."""

    arguments: tuple[str, ...]
    process: ForkServerProcess
    stdout: Path
    stderr: Path

    def wait(self, timeout: float) -> "CompletedProcess[str]":
        """How it ended, and what it said.

        Raises:
            TimeoutExpired: it did not end in so many seconds, and was killed.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutExpired(self.arguments, timeout, self.stdout.read_text())
        said, complained = self.stdout.read_text(), self.stderr.read_text()
        rmtree(self.stdout.parent)
        return CompletedProcess(self.arguments, self.process.exitcode, said, complained)


def fork_python(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Forked:
    """Start what `python ARGUMENTS` would: `-m MODULE`, `-c CODE` or a script, and what it takes.

    Args:
        arguments: as of Python.
        env: variables added to those of this process; PYTHONPATH counts.
        cwd: its working directory.
    """
    folder = Path(mkdtemp(prefix="forked-"))
    stdout, stderr = folder / "stdout", folder / "stderr"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    streams = (str(stdout), str(stderr))
    process = _CONTEXT.Process(
        target=_become, args=(arguments, environment, str(cwd or Path.cwd()), streams), daemon=True
    )
    for path in (stdout, stderr):
        path.touch()
    process.start()
    return Forked(arguments, process, stdout, stderr)


def run_python(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> "CompletedProcess[str]":
    """The same to its end; arguments as of `fork_python`."""
    return fork_python(*arguments, env=env, cwd=cwd).wait(timeout)


def run_together(number: int, *arguments: str, timeout: float = 240) -> None:
    """So many at once, that find one another as processes of torchrun do; to the end of all.

    Raises:
        AssertionError: one of them failed; says what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **sizes}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    for started in [fork_python(*arguments, env={**shared, **rank}) for rank in ranks]:
        done = started.wait(timeout)
        assert done.returncode == 0, done.stderr[-4000:]


def _become(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: str, streams: Sequence[str]
) -> None:
    """In the forked process: everything that a new interpreter would find, then the program."""
    # What was imported is never collected, nor copied to look whether it can be.
    gc.freeze()
    for number, path in enumerate(streams, 1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    first, *rest = arguments
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [*([str(Path(first).parent)] if not first.startswith("-") else [cwd]), *paths]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
