"""The driver of a machine with a GPU, with steps that need none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench import run_on_gpu
from bench.exit_status import AGAIN
from bench.gpu_steps import FIRST, ROOT, Step, steps
from bench.run_on_gpu import finished, main, note, run_all, run_step


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_step_is_logged_and_its_last_line_kept(tmp_path: Path) -> None:
    outcome = run_step(Step("one", python("print('first'); print('last'); print()")), tmp_path)
    assert (outcome.status, outcome.last_line) == (0, "last")
    assert (tmp_path / "one.log").read_text() == "first\nlast\n\n"


def test_a_failure_is_a_status(tmp_path: Path) -> None:
    assert run_step(Step("bad", python("raise SystemExit(3)")), tmp_path).status == 3


def test_a_step_beyond_its_budget_is_stopped(tmp_path: Path) -> None:
    slow = Step("slow", python("import time; time.sleep(60)"), budget=0.3, grace=0.2)
    outcome = run_step(slow, tmp_path)
    assert outcome.status == 124
    assert outcome.seconds < 30


def test_what_is_not_installed_is_left_out(tmp_path: Path) -> None:
    outcome = run_step(Step("tool", ("no-such-program",), needs="no-such-program"), tmp_path)
    assert (outcome.status, outcome.last_line) == (0, "left out: no-such-program is not there")


def test_steps_see_this_checkout(tmp_path: Path) -> None:
    code = "import secateur_kernels, bench, gpu.layers; print(secateur_kernels.__file__)"
    outcome = run_step(Step("imports", python(code)), tmp_path)
    assert outcome.status == 0
    assert Path(outcome.last_line).is_relative_to(ROOT / "kernels")


def test_all_go_on_where_they_ended(tmp_path: Path) -> None:
    chosen = [
        Step("good", python("")),
        Step("again", python(f"raise SystemExit({AGAIN})")),
        Step("bad", python("raise SystemExit(1)")),
        Step("never", python("")),
    ]
    outcomes = run_all(chosen, tmp_path, float("inf"))
    assert [(outcome.step, outcome.status) for outcome in outcomes] == [
        ("good", 0),
        ("again", AGAIN),
        ("bad", 1),
    ]
    assert finished(tmp_path) == {"good"}
    assert [o.step for o in run_all(chosen[2:], tmp_path, float("inf"), True)] == ["bad", "never"]
    assert finished(tmp_path) == {"good", "never"}


def test_no_step_begins_that_the_limit_has_no_room_for(tmp_path: Path) -> None:
    chosen = [Step("first", python(""), 400), Step("second", python(""), 400)]
    assert [outcome.step for outcome in run_all(chosen, tmp_path, 300)] == ["first"]
    short = [*chosen, Step("third", python(""), 100)]
    assert [outcome.step for outcome in run_all(short, tmp_path, 300)] == ["first", "third"]


def test_what_can_be_cut_short_is(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[-2:])"
    chosen = [Step("first", python("")), Step("second", python(code), 400, flexible=True)]
    outcomes = run_all(chosen, tmp_path, 300)
    assert outcomes[1].last_line in ("['--budget', '240']", "['--budget', '239']")
    assert [outcome.step for outcome in run_all(chosen, tmp_path, 90)] == ["first"]


def test_a_short_visit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, without what is done, on after a failure."""
    known = {step.name: step for step in steps(tmp_path, tmp_path, tmp_path)}
    assert set(FIRST) <= set(known)
    ran = []

    def quick(step: Step, out: Path) -> run_on_gpu.Outcome:
        ran.append(step.name)
        return run_on_gpu.Outcome(step.name, int(step.name == "probe"), 1.0, "")

    monkeypatch.setattr(run_on_gpu, "run_step", quick)
    arguments = ["--first", "--minutes", "14", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert tuple(ran) == FIRST
    assert "left: probe" in capsys.readouterr().out
    main(arguments)
    assert ran[len(FIRST) :] == ["probe"]


def test_a_short_visit_leaves_room_for_the_machine() -> None:
    """What it is for fits into ten minutes: some of fifteen go to the start of a machine."""
    known = {step.name: step for step in steps(ROOT, ROOT, ROOT)}
    must = [known[name] for name in FIRST[: FIRST.index("bench-quick-packing") + 1]]
    compiled = [step for step in must if step.name != "build"]
    assert sum(step.budget for step in compiled) <= 10 * 60


def test_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = steps(tmp_path, tmp_path, tmp_path)
    names = [step.name for step in known]
    assert len(set(names)) == len(names)
    assert names[:4] == ["facts", "build", "probe", "quick"]
    assert all(step.budget + step.grace <= 8 * 60 for step in known)
    for step in known:
        for word in step.command:
            if word.startswith("tests/gpu"):
                assert (ROOT / word.partition("::")[0]).exists(), word
    tested = {word for step in known for word in step.command if word.startswith("tests/gpu/")}
    folders = {path.name for path in (ROOT / "tests" / "gpu").iterdir() if path.is_dir()}
    for folder in folders - {"__pycache__"}:
        assert any(f"tests/gpu/{folder}" in word for word in tested), folder
    note(run_on_gpu.Outcome("facts", 0, 1.0, ""), tmp_path)
    assert main(["--list", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "facts                       60 s  done" in out
    assert json.loads((tmp_path / "steps.jsonl").read_text())["step"] == "facts"
    with pytest.raises(SystemExit):
        main(["no such step"])


def run_suite(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += [
        "--rootdir",
        str(folder),
        "--import-mode=importlib",
        str(folder / "suite"),
        *options,
    ]
    paths = os.pathsep.join(str(ROOT / name) for name in ("tests", "kernels"))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(
        [*command, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_the_gpu_suite_ends_in_time_and_goes_on(tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    conftest = (ROOT / "tests" / "gpu" / "conftest.py").read_text(encoding="utf-8")
    there = conftest.replace("torch.cuda.is_available()", "True")
    (suite / "conftest.py").write_text(there, encoding="utf-8")
    slow = "import time\ndef test_one(): time.sleep(2)\ndef test_two(): pass\n"
    (suite / "test_some.py").write_text(slow, encoding="utf-8")
    done = tmp_path / "new" / "done.txt"
    first = run_suite(tmp_path, "--budget", "1.6", "--done", str(done))
    assert first.returncode == AGAIN, first.stdout + first.stderr
    assert "the budget of 2 s is spent: run again" in first.stdout
    assert done.read_text().endswith("::test_one\n")
    second = run_suite(tmp_path, "--done", str(done))
    assert "1 passed, 1 deselected" in second.stdout
    third = run_suite(tmp_path, "--done", str(done))
    assert (third.returncode, "2 deselected" in third.stdout) == (0, True)
