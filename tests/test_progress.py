import io
import re
import sys

import pytest

from secateur.errors import SecateurError
from secateur.progress import Progress, SilentProgress, TerminalProgress, default_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on standard error is a terminal, as far as anyone can tell."""
    for name in ("SECATEUR_NO_PROGRESS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def work(progress: Progress) -> None:
    progress.begin("prune (wanda)", 2)
    progress.advance("block 0  q_proj  error 0.123")
    progress.advance()
    progress.begin("perplexity", 1)
    progress.advance("perplexity 5.47")
    progress.close()


def test_silent_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SECATEUR_NO_PROGRESS", raising=False)
    progress = default_progress()
    assert isinstance(progress, SilentProgress)
    work(progress)
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = watch(monkeypatch)
    progress = default_progress()
    assert isinstance(progress, TerminalProgress)
    work(progress)
    shown = terminal.getvalue()
    for text in ("prune (wanda)", "2/2", "perplexity", "1/1", "perplexity 5.47"):
        assert text in shown
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", ["1", "true"])
def test_bars_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    terminal = watch(monkeypatch)
    monkeypatch.setenv("SECATEUR_NO_PROGRESS", value)
    work(default_progress())
    assert terminal.getvalue() == ""


def test_switch_that_cannot_be_understood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch)
    monkeypatch.setenv("SECATEUR_NO_PROGRESS", "perhaps")
    with pytest.raises(SecateurError, match="SECATEUR_NO_PROGRESS must be one of"):
        default_progress()


def test_steps_before_a_task_and_closing_twice_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = watch(monkeypatch)
    progress = TerminalProgress()
    progress.close()
    progress.advance("nothing yet")
    assert "nothing yet" not in terminal.getvalue()
    work(progress)
    progress.close()


def test_terminal_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch)

    def fail() -> None:
        with TerminalProgress() as progress:
            progress.begin("load", 3)
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fail()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().rfind(shown) > terminal.getvalue().rfind(hidden) >= 0


@pytest.mark.parametrize("text", ["a [/b]", "[red]x"])
def test_brackets_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    terminal = watch(monkeypatch)
    progress = TerminalProgress()
    try:
        progress.begin(text, 1)
        progress.advance(text)
    finally:
        progress.close()
    assert text in terminal.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_times_are_whole_on_any_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = watch(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    progress = TerminalProgress()
    progress.begin("singular values of outputs", 120)
    for _ in range(7):
        progress.advance("block 31  self_attn.q_proj  error 0.123  and more words than fit there")
    progress.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).splitlines()[-1].rstrip()
    assert len(last) <= width
    assert re.search(r" 7/120 \d+:\d\d", last)
    assert ("━" in last) == (width >= 100), "the bar goes where there is no room"
