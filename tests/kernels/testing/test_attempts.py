"""What processes die of is known to the next one."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from forked import run_python

from secateur_kernels.testing.attempts import (
    BROKEN,
    Attempts,
    BrokenContextError,
    Death,
    check_usable,
)


def test_what_ends_is_no_death(tmp_path: Path) -> None:
    notes = tmp_path / "new" / "notes.jsonl"
    attempts = Attempts(notes)
    with attempts.trying("one", "kernel a"):
        pass
    with pytest.raises(ValueError, match="wrong"), attempts.trying("two", "kernel a"):
        raise ValueError("wrong")
    assert attempts.deaths == Attempts(notes).deaths == ()


def run_in_a_process(code: str, notes: Path, *options: str) -> "CompletedProcess[str]":
    opening = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from secateur_kernels.testing.attempts import Attempts\n"
        f"attempts = Attempts(Path(sys.argv[1]), {', '.join(options)})\n"
    )
    return run_python("-c", opening + code, str(notes))


def test_a_process_that_is_killed_names_what_it_died_of(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    code = (
        "with attempts.trying('one', 'kernel a'):\n    pass\n"
        "with attempts.trying('two', 'kernel b'):\n    os.kill(os.getpid(), 11)\n"
    )
    assert run_in_a_process(code, notes).returncode == -11
    attempts = Attempts(notes)
    assert attempts.deaths == (Death("two", "kernel b", "the process ended in the middle of it"),)
    with attempts.trying("three", "kernel c"):
        pass
    later = Attempts(notes)
    assert [(d.what, later.died_of(d.blame)) for d in later.deaths] == [("two", 1)]
    assert later.died_of("kernel a") == 0


def test_a_hung_process_says_where_and_with_what(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    script = tmp_path / "hangs.py"
    script.write_text(
        "import sys, time\nimport torch\nfrom pathlib import Path\n"
        "from secateur_kernels.testing.attempts import Attempts\n"
        "def launch(m, config, x):\n    time.sleep(60)\n"
        "with Attempts(Path(sys.argv[1]), 0.3).trying('one', 'kernel a'):\n"
        "    launch(33, 'tall', torch.zeros(2, 3))\n",
        encoding="utf-8",
    )
    done = run_python(str(script), str(notes))
    assert done.returncode == BROKEN
    where = "hangs.py:6 launch m=33, config='tall', x=torch.float32[2, 3]"
    assert where in done.stderr
    assert "one hung: no end after 0 s" in done.stderr
    (death,) = Attempts(notes).deaths
    assert death.blame == "kernel a"
    assert where in death.why


def test_a_hung_process_ends_whatever_its_values_are(tmp_path: Path) -> None:
    notes, script = tmp_path / "notes.jsonl", tmp_path / "hangs.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "from secateur_kernels.testing.attempts import Attempts\n"
        "class Odd(str):\n    def __repr__(self): raise ValueError('no name')\n"
        "def launch(odd):\n    time.sleep(20)\n"
        "with Attempts(Path(sys.argv[1]), 0.3).trying('one', 'kernel a'):\n    launch(Odd())\n",
        encoding="utf-8",
    )
    assert run_python(str(script), str(notes)).returncode == BROKEN
    assert [death.what for death in Attempts(notes).deaths] == ["one"]


def test_another_build_begins_anew(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    code = "with attempts.trying('one', 'kernel a'):\n    os._exit(1)\n"
    run_in_a_process(code, notes, "build='old'")
    assert Attempts(notes, build="old").died_of("kernel a") == 1
    assert Attempts(notes, build="new").deaths == ()


def test_a_line_that_was_cut_hides_nothing(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"trying": "one", "blame": "a", "build": ""}\n{"died": "b', encoding="utf-8")
    assert [death.what for death in Attempts(notes).deaths] == ["one"]


def test_a_broken_context_is_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    check_usable(torch.device("cpu"))
    notes = tmp_path / "notes.jsonl"
    broken = pytest.raises(BrokenContextError, match=r"^CUDA error: an illegal memory access$")
    with broken, Attempts(notes).trying("one", "kernel a"):
        check_usable(torch.device("cuda"))
    (death,) = Attempts(notes).deaths
    assert death.why == "CUDA error: an illegal memory access"
