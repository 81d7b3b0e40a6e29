"""Processes of steps: what they print, and that each has an end."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import step_process
from bench.gpu_steps import ROOT
from bench.step_process import STOPPED, Ended, run_process


def run(code: str, seconds: float = 60, silence: float | None = None) -> tuple[Ended, str, float]:
    log, started = io.StringIO(), time.monotonic()
    command = (sys.executable, "-c", code)
    ended = run_process(command, Path.cwd(), os.environ, log, seconds, silence)
    return ended, log.getvalue(), time.monotonic() - started


def test_output_is_passed_on_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    ended, log, _ = run("import sys; print('one'); print('two', end='', file=sys.stderr)")
    assert (ended.status, ended.why) == (0, "")
    assert ended.last_line in ("one", "two")
    assert sorted(log) == sorted("one\ntwo")
    assert capsys.readouterr().out == log


def test_what_is_printed_at_the_very_end_is_not_lost() -> None:
    reader, writer = os.pipe()

    class EndsWhenAsked(subprocess.Popen[bytes]):
        """Prints its last line, and is gone, just when it is asked whether it is."""

        returncode = None

        def __init__(self) -> None: ...

        def __del__(self) -> None: ...

        def poll(self) -> int:
            if self.returncode is None:
                os.write(writer, b"done")
                self.returncode = 0
            return 0

    log = io.StringIO()
    output = step_process._Output(log, shown=False)
    try:
        assert step_process._follow(EndsWhenAsked(), reader, output, 60.0, None) == ""
    finally:
        os.close(reader)
        os.close(writer)
    assert log.getvalue() == "done"


def test_bytes_that_are_no_text_do_no_harm() -> None:
    code = "import sys; sys.stdout.buffer.write(b'good \\xff\\n'); raise SystemExit(3)"
    ended, log, _ = run(code)
    assert (ended.status, log) == (3, "good \N{REPLACEMENT CHARACTER}\n")


def test_a_signal_is_named() -> None:
    ended, _, _ = run("import os; os.kill(os.getpid(), 11)")
    assert (ended.status, ended.why) == (-11, "killed by SIGSEGV")


def test_too_long_is_stopped() -> None:
    ended, _, taken = run("import time\nwhile True: print('on', flush=True); time.sleep(.1)", 1.0)
    assert (ended.status, ended.why) == (STOPPED, "stopped after 1 s")
    assert taken < 30


def test_silence_is_stopped() -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    ended, _, taken = run(code, silence=1.5)
    assert ended == Ended(STOPPED, "stopped after 2 s without output", "begun")
    assert taken < 30


def test_what_it_leaves_behind_delays_nobody() -> None:
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    for session in ("", ", start_new_session=True"):
        ended, _, taken = run(code.replace("])", f"]{session})"))
        assert ended.status == 0
        assert taken < 30


def test_what_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the driver waits for a kernel that never ends."""
    monkeypatch.setattr(step_process, "_kill", lambda process: None)
    monkeypatch.setattr(step_process, "_LAST_SECONDS", 0.2)
    ended, _, taken = run("import time; time.sleep(20)", 0.5)
    assert ended.status == STOPPED
    assert ended.why.endswith("and it cannot be killed")
    assert taken < 15


def test_it_ends_with_whoever_follows_it(tmp_path: Path) -> None:
    """Killed in any way: a GPU that is still busy would be measured by the next one."""
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    code = (
        "import io, os, sys\nfrom pathlib import Path\n"
        "from bench.step_process import run_process\n"
        f"command = (sys.executable, '-c', {child + '; time.sleep(60)'!r})\n"
        "run_process(command, Path.cwd(), os.environ, io.StringIO(), 50)\n"
    )
    for how in (signal.SIGKILL, signal.SIGINT):
        (tmp_path / "pid").unlink(missing_ok=True)
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            # What runs in the background of a script is started with interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        parent.send_signal(how)
        parent.wait(30)
        assert until(lambda: not runs(pid)), how  # noqa: B023


def runs(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    started = time.monotonic()
    while not condition() and time.monotonic() - started < seconds:
        time.sleep(0.1)
    return condition()
