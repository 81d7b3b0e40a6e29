"""One process of a step: its output is passed on as it comes, and nothing can delay its end.

A process whose kernel hangs may outlive even SIGKILL for a while: then it is left behind, so that
the steps that follow get their turn. Where this process is killed, so is the one that it follows:
otherwise the GPU would be busy for whoever comes next.
"""

import codecs
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

STOPPED = 124
"""Status of a process that had to be stopped, as of the program timeout."""
# How long a killed process may take to go.
_LAST_SECONDS = 15.0
_TICK = 0.2
# A child runs Python before its program: one at a time, as threads may start several.
_STARTING = threading.Lock()
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Exit status, `STOPPED`, or minus the number of the signal that killed it."""
    why: str
    """Where it did not end by itself: why it was stopped, or the signal."""
    last_line: str
    """Of its output, that is not empty."""


def run_process(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: IO[str],
    seconds: float,
    silence: float | None = None,
    shown: bool = True,
) -> Ended:
    """Run a command; both its streams go to the log and to this process's output.

    Threads may run several at once; a thread must outlive what it runs.

    Args:
        command: program and arguments.
        folder: its working directory.
        environment: its variables.
        log: open for writing.
        seconds: after which it is stopped, with everything that it started.
        silence: seconds without any output after which it is stopped as well.
        shown: whether its output goes to this process's, too.
    """
    with _STARTING:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # whatever it starts ends with it
            preexec_fn=_end_with_the_parent,
        )
    assert process.stdout is not None
    with process.stdout:
        output = _Output(log, shown)
        try:
            why = _follow(process, process.stdout.fileno(), output, seconds, silence)
        finally:
            _kill(process)
        gone = _gone(process)
        output.close()
    if why and not gone:
        why += ", and it cannot be killed"
    status = process.returncode if not why and process.returncode is not None else STOPPED
    if status < 0:
        why = f"killed by {signal.Signals(-status).name}"
    return Ended(status, why, output.last_line)


class _Output:
    """Passes text on, and remembers its last line."""

    def __init__(self, log: IO[str], shown: bool) -> None:
        self._log = log
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self.last_line = ""

    def write(self, data: bytes) -> None:
        self._pass_on(self._decoder.decode(data))

    def close(self) -> None:
        self._pass_on(self._decoder.decode(b"", final=True))
        self.last_line = self._line.strip() or self.last_line

    def _pass_on(self, text: str) -> None:
        self._log.write(text)
        self._log.flush()
        if self._shown:
            sys.stdout.write(text)
            sys.stdout.flush()
        *lines, self._line = (self._line + text).split("\n")
        whole = [line.strip() for line in lines if line.strip()]
        self.last_line = whole[-1] if whole else self.last_line


def _follow(
    process: "subprocess.Popen[bytes]",
    pipe: int,
    output: _Output,
    seconds: float,
    silence: float | None,
) -> str:
    """Until the process ends or has to be stopped; why it has to be."""
    started = heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            # First: all that it wrote is in the pipe by then.
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _TICK)
            data = os.read(pipe, 1 << 16) if ready else b""
            now = time.monotonic()
            if data:
                heard = now
                output.write(data)
            elif has_ended:
                return ""  # what it started may keep the pipe open
            elif ready:
                time.sleep(_TICK)  # it has closed its output
            if now - started > seconds:
                return f"stopped after {seconds:.0f} s"
            if silence is not None and now - heard > silence:
                return f"stopped after {silence:.0f} s without output"


def _end_with_the_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended


def _gone(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(_LAST_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
