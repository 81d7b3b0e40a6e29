"""The driver of a machine with a GPU, with steps that need none."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from bench import run_on_gpu
from bench.exit_status import AGAIN, BROKEN
from bench.gpu_steps import FIRST, ROOT, TEST_PARTS, TOGETHER, Step, steps, steps_named
from bench.run_on_gpu import Turn, first_turns, main, run_all
from bench.side_by_side import AT_ONCE, at_most_at_once, run_together, what_failed
from bench.step_run import Outcome, environment, finished, note, run_step
from forked import run_python


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


# Without what the package around it imports, three times, which takes seconds each.
ATTEMPTS_ALONE = f"""
import sys, types
for name in ("secateur_kernels", "secateur_kernels.testing"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(ROOT / "kernels")!r} + "/" + name.replace(".", "/")]
sys.modules["torch"] = types.SimpleNamespace(Tensor=tuple, device=str)
from secateur_kernels.testing.attempts import Attempts
"""
DIES_TWICE = """
import os
from pathlib import Path
attempts = Attempts(Path(sys.argv[1]))
for name, end in (("a", None), ("b", lambda: os.kill(os.getpid(), 11)), ("c", None), ("d", hang)):
    if not attempts.died_of(name):
        with attempts.trying(name, name):
            if end: end()
            print(name, "is done", flush=True)
print(f"done with {len(attempts.deaths)} deaths and {sys.argv[2:]}")
raise SystemExit(bool(attempts.deaths))
"""


def test_a_step_goes_on_without_what_it_died_of(tmp_path: Path) -> None:
    hang = "import time\ndef hang(): time.sleep(60)\n"
    command = (*python(ATTEMPTS_ALONE + hang + DIES_TWICE), str(tmp_path / "notes.jsonl"))
    step = Step("dies", command, budget=160, grace=5, silence=4, restarts=True)
    started = time.monotonic()
    outcome = run_step(step, tmp_path)
    assert time.monotonic() - started < 120
    log = (tmp_path / "dies.log").read_text()
    assert outcome.status == 1, log
    assert "--- dies: killed by SIGSEGV: started again" in log
    assert "--- dies: stopped after 4 s without output: started again" in log
    assert outcome.last_line.startswith("done with 2 deaths and ['--budget=")
    assert log.count("a is done") == 3
    assert log.count("c is done") == 2


def test_a_step_is_not_started_again_for_nothing(tmp_path: Path) -> None:
    """Not without notes of what it tries, and not for a moment."""
    broken = Step("broken", python(f"print('here'); raise SystemExit({BROKEN})"), 30, grace=5)
    for restarts, budget, starts in ((False, 30, 1), (True, 8, 1), (True, 20, 2)):
        command = python(
            f"from pathlib import Path; p = Path({str(tmp_path)!r}, 'starts-{restarts}-{budget}')\n"
            "n = len(p.read_text()) if p.exists() else 0\n"
            "p.write_text('x' * (n + 1)); raise SystemExit(0 if n else 76)"
        )
        step = Step(broken.name, command, budget, grace=5, restarts=restarts)
        outcome = run_step(step, tmp_path)
        assert len((tmp_path / f"starts-{restarts}-{budget}").read_text()) == starts
        assert outcome.status == (0 if starts == 2 else BROKEN)


def test_a_whole_visit_of_steps_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passes, fails, hangs, dies by a signal, is not there: all others get their turn; everything
    that was written is in the archive; the second visit does what is left."""
    write = (
        f"from pathlib import Path; Path({str(tmp_path)!r}, 'out', 'result').write_text('12 us')"
    )
    kinds = [
        Step("facts", python("print('a fact')"), 20, grace=2),
        Step("build", python("raise SystemExit(2)"), 20, grace=2),
        Step("probe", python("import time; time.sleep(60)"), 2, grace=1),
        Step("quick", python("import os; os.kill(os.getpid(), 6)"), 20, grace=2),
        Step("bench-quick", python(f"raise SystemExit({AGAIN})"), 20, grace=2),
        Step("microbench", (str(tmp_path / "no such program"),), 20, grace=2),
        Step("bench-quick-low-rank", python(write), 20, grace=2),
        Step("tests-use-1", python("print('6 passed')"), 20, grace=2),
        Step("tests-use-2", python(f"raise SystemExit({AGAIN})"), 20, grace=2),
        Step("engine-8b", python("print('4.5 ms')"), 20, grace=2),
    ]
    names = [step.name for step in kinds]
    monkeypatch.setattr(run_on_gpu, "steps", lambda *folders: kinds)
    monkeypatch.setattr(run_on_gpu, "FIRST", (*names[:7], ("tests-use",), "engine-8b"))
    archive = tmp_path / "elsewhere" / "visit.tar.gz"
    arguments = ["--first", "--minutes", "3", "--out", str(tmp_path / "out")]
    arguments += ["--results", str(tmp_path / "new" / "results")]
    arguments += ["--archive", str(archive)]
    assert main(arguments) == 124
    assert (tmp_path / "new" / "results").is_dir()
    with tarfile.open(archive) as file:
        logs = {f"out/{name}.log" for name in names}
        assert {*logs, "out/steps.jsonl", "out/result"} <= set(file.getnames())
        steps_file = file.extractfile("out/steps.jsonl")
        assert steps_file is not None
        lines = [json.loads(line) for line in steps_file]
    statuses = {line["step"]: line["status"] for line in lines}
    assert list(statuses)[:7] == names[:7]
    assert list(statuses.values())[:7] == [0, 2, 124, -6, AGAIN, 1, 0]
    assert {name: statuses[name] for name in names[7:]} == dict(
        zip(names[7:], (0, AGAIN, 0), strict=True)
    )
    assert lines[-1]["step"] == "engine-8b"
    assert "killed by SIGABRT" in lines[3]["last_line"]
    assert "cannot be started" in lines[5]["last_line"]
    shown = capsys.readouterr().out
    assert "left: build, probe, quick, bench-quick, microbench, tests-use-2\n" in shown
    assert "--- side by side: tests-use-1, tests-use-2" in shown
    kinds[2] = Step("probe", python("print('sound')"), 20, grace=2)
    kinds[8] = Step("tests-use-2", python("print('2 passed')"), 20, grace=2)
    main(arguments)
    assert finished(tmp_path / "out") == {"facts", "probe", *names[6:]}
    shown = capsys.readouterr().out
    assert "--- side by side: tests-use-2\n" in shown
    assert "4.5 ms" not in shown


def test_steps_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the same time, each to its own log, all in one table and one archive."""
    meet = (
        "import os, sys, time\nfrom pathlib import Path\n"
        f"here = Path({str(tmp_path)!r})\n"
        "(here / sys.argv[1]).touch()\n"
        "while not ((here / 'a').exists() and (here / 'b').exists()): time.sleep(0.05)\n"
        "print(sys.argv[1], 'met the other with', os.environ['OMP_NUM_THREADS'], 'threads')\n"
    )
    chosen = [
        Step("one", (*python(meet), "a"), 60, grace=5),
        Step("two", (*python(meet), "b"), 60, grace=5),
        Step("bad", python("print('row 3\\nSKIPPED [1] it'); raise SystemExit(3)"), 60, grace=5),
        Step("slow", python("import time; time.sleep(60)"), 2, grace=1),
        Step("spent", python(f"print('2 failed'); raise SystemExit({AGAIN})"), 60, grace=5),
        Step("too long", python(""), 900, grace=5),
    ]
    out, archive = tmp_path / "out", tmp_path / "visit.tar.gz"
    outcomes = run_together(chosen, out, 120, at_once=6, archive=archive)
    statuses = {outcome.step: outcome.status for outcome in outcomes}
    assert statuses == {"one": 0, "two": 0, "bad": 3, "slow": 124, "spent": AGAIN}
    threads = max(1, (os.cpu_count() or 1) // 6)
    assert (out / "one.log").read_text() == f"a met the other with {threads} threads\n"
    assert finished(out) == {"one", "two"}
    shown = capsys.readouterr().out
    assert "--- two: 0 after" in shown
    assert "--- no time for too long" in shown
    assert shown.count("b met") == 1  # as the last line of its log
    told = what_failed(outcomes, out)
    assert told.splitlines() == [
        "",
        "bad, 3:",
        "row 3",
        "",
        "slow, 124:",
        "",
        "spent, 75:",
        "2 failed",
    ]
    with tarfile.open(archive) as file:
        assert {"out/one.log", "out/bad.log", "out/steps.jsonl"} <= set(file.getnames())


def test_no_more_at_once_than_asked_for(tmp_path: Path) -> None:
    code = "import time; print(time.time()); time.sleep(0.5); print(time.time())"
    chosen = [Step(f"step-{i}", python(code), 60, grace=5) for i in range(4)]
    outcomes = run_together(chosen, tmp_path, 600, at_once=2)
    assert [outcome.step for outcome in outcomes] == [step.name for step in chosen]
    times = [[float(t) for t in (tmp_path / f"{s.name}.log").read_text().split()] for s in chosen]
    for at in (start for start, _ in times):
        assert sum(start <= at < end for start, end in times) <= 2


def test_the_whole_suite_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names of what was divided; nothing that measures times."""
    ran: list[Step] = []

    def together(chosen: list[Step], *rest: object) -> list[Outcome]:
        ran.extend(chosen)
        return [Outcome(step.name, 0, 1.0, "") for step in chosen]

    monkeypatch.setattr(run_on_gpu, "run_together", together)
    names = ["quick", "tests-accuracy-sparse24", "tests-memory-large", "tests-use"]
    arguments = ["--together", "--limit", "120", "--out", str(tmp_path)]
    assert main([*arguments, *names]) == 0
    parts = [f"tests-accuracy-sparse24-{part}" for part in (1, 2, 3, 4)]
    expected = [
        "quick",
        *parts,
        "tests-memory-large",
        *(f"tests-use-{part}" for part in (1, 2, 3, 4)),
    ]
    assert [step.name for step in ran] == expected
    assert all(step.within(119) for step in ran if step.name != "tests-memory-large")
    for name in ("bench-quick", "microbench", "tune-1", "build", "large-8b", "bench-drawn"):
        with pytest.raises(SystemExit):
            main([*arguments, "quick", name])
        assert f"nothing may run beside {name}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--first"])
    assert "nothing may run beside what measures times" in capsys.readouterr().err


def test_no_more_side_by_side_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what nvidia-smi says; where it says nothing, by the cores."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert at_most_at_once() == AT_ONCE
    program = tmp_path / "nvidia-smi"
    for said, expected in (("81559", min(AT_ONCE, 19)), ("5000", 1), ("?", AT_ONCE)):
        program.write_text(f"#!/bin/sh\necho {said}\n", encoding="utf-8")
        program.chmod(0o755)
        assert at_most_at_once() == expected


def test_an_archive_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").write_text("no folder", encoding="utf-8")
    chosen = [Step("first", python("")), Step("second", python(""))]
    archive = tmp_path / "full" / "visit.tar.gz"
    outcomes = run_all(chosen, tmp_path / "out", float("inf"), archive=archive)
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert capsys.readouterr().out.count("not packed: ") == 2


def test_what_is_not_installed_is_left_out(tmp_path: Path) -> None:
    outcome = run_step(Step("tool", ("no-such-program",), needs="no-such-program"), tmp_path)
    assert (outcome.status, outcome.last_line) == (0, "left out: no-such-program is not there")


def test_steps_see_this_checkout(tmp_path: Path) -> None:
    find = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).origin)"
    places = {"secateur_kernels": ROOT / "kernels", "bench.linears": ROOT, "gpu.layers": ROOT}
    for name, place in places.items():
        outcome = run_step(Step("imports", (*python(find), name)), tmp_path)
        assert outcome.status == 0
        assert Path(outcome.last_line).is_relative_to(place)


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
    code = "import sys; print(sys.argv[-1])"
    chosen = [Step("first", python("")), Step("second", python(code), 400, flexible=True)]
    outcomes = run_all(chosen, tmp_path, 300)
    assert outcomes[1].last_line in ("--budget=240", "--budget=239")
    assert [outcome.step for outcome in run_all(chosen, tmp_path, 90)] == ["first"]


def alone(turns: Sequence[str | tuple[str, ...]]) -> list[str]:
    """Of `FIRST`: what runs by itself."""
    return [name for name in turns if isinstance(name, str)]


def test_a_short_visit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, without what is done, what was never tried first, on after a failure."""
    known = steps(tmp_path, tmp_path, tmp_path)
    first = alone(FIRST)
    assert all([step.name for step in steps_named(name, known)] == [name] for name in first)
    # Dispatch chooses by what was tuned in the same visit.
    assert first.index("tune-quick") < first.index("bench-quick")
    together = next(names for names in FIRST if not isinstance(names, str))
    side_by_side = [step for name in together for step in steps_named(name, known)]
    assert {step.name.rpartition("-")[0] for step in side_by_side} == set(together)
    assert not any(step.alone for step in side_by_side)
    ran: list[str] = []

    def quick(step: Step, out: Path) -> Outcome:
        ran.append(step.name)
        return Outcome(step.name, int(step.name == "probe"), 1.0, "")

    def at_once(chosen: Sequence[Step], out: Path, limit: float, *rest: object) -> list[Outcome]:
        assert 100 < limit <= TOGETHER
        assert all(step.within(limit) for step in chosen)
        outcomes = [Outcome(step.name, 0, 1.0, "") for step in chosen if step.name != "tests-use-3"]
        for outcome in outcomes:
            note(outcome, out)
        return outcomes

    monkeypatch.setattr(run_on_gpu, "run_step", quick)
    monkeypatch.setattr(run_on_gpu, "run_together", at_once)
    arguments = ["--first", "--minutes", "14", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert ran == first
    assert "left: probe, tests-memory-large, tests-use-3, " in capsys.readouterr().out
    turns = first_turns(known, tmp_path)
    assert [[step.name for step in steps_of(turn)] for turn in turns] == [
        ["tests-use-3"],
        ["probe"],
    ]
    main(arguments)
    assert ran[len(first) :] == ["probe"]


def steps_of(turn: Turn) -> tuple[Step, ...]:
    return turn if isinstance(turn, tuple) else (turn,)


def test_a_short_visit_leaves_room_for_the_machine() -> None:
    """Its tables come in ten minutes at worst: some of fifteen go to the start of a machine."""
    known = {step.name: step for step in steps(ROOT, ROOT, ROOT)}
    must = [known[name] for name in alone(FIRST[: FIRST.index("bench-quick-packing")])]
    compiled = [step for step in must if step.name != "build"]
    assert sum(step.budget for step in compiled) <= 10 * 60


def test_what_records_as_it_goes_may_have_less_time() -> None:
    whole = Step("large", python(""), 300, grace=10, least=70)
    assert whole.within(310) == whole
    shorter = whole.within(100)
    assert shorter is not None
    assert (shorter.budget, shorter.command) == (90, whole.command)
    assert whole.within(79) is None


def test_the_parts_of_the_suite_hold_every_test_that_needs_a_gpu() -> None:
    """Those of one folder, which its conftest marks: one that is marked elsewhere is in no part."""
    parts = [ROOT / path for path, _ in TEST_PARTS.values()]
    for path in (ROOT / "tests").rglob("test_*.py"):
        if ROOT / "tests" / "gpu" in path.parents:
            assert any(path.is_relative_to(part) for part in parts), path
        elif path != Path(__file__):
            assert "pytest.mark.gpu" not in path.read_text(encoding="utf-8"), path


def test_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = steps(tmp_path, tmp_path, tmp_path)
    names = [step.name for step in known]
    assert len(set(names)) == len(names)
    assert names[:4] == ["facts", "build", "probe", "quick"]
    assert all(step.budget + step.grace <= 8 * 60 for step in known)
    again = [step for step in known if step.restarts]
    for step in again:
        assert all(option in " ".join(step.command) for option in ("--budget", "--patience"))
    for step in (step for step in known if "pytest" in step.command):
        options = step.command[step.command.index("--maxfail=60") :]
        values = [word for word in options if not word.startswith(("-", "tests/gpu"))]
        assert len(values) == sum(word in ("-p", "-o", "-k") for word in options), values
    for step in known:
        for word in step.command:
            if word.startswith("tests/gpu"):
                assert (ROOT / word.partition("::")[0]).exists(), word
    tested = {word for step in known for word in step.command if word.startswith("tests/gpu/")}
    folders = {path.name for path in (ROOT / "tests" / "gpu").iterdir() if path.is_dir()}
    for folder in folders - {"__pycache__"}:
        assert any(f"tests/gpu/{folder}" in word for word in tested), folder
    note(Outcome("facts", 0, 1.0, ""), tmp_path)
    assert main(["--list", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "facts                       30 s  done" in out
    assert json.loads((tmp_path / "steps.jsonl").read_text())["step"] == "facts"
    with pytest.raises(SystemExit):
        main(["no such step"])


def run_suite(folder: Path, *options: str) -> "CompletedProcess[str]":
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(folder), "--import-mode=importlib", str(folder / "suite")]
    paths = os.pathsep.join(str(ROOT / name) for name in ("tests", "kernels"))
    return run_python(*command, *options, env={"PYTHONPATH": paths}, cwd=folder)


def write_suite(folder: Path, tests: str) -> None:
    """Tests beside the conftest of the GPU suite, as on a machine that has a GPU."""
    suite = folder / "suite"
    suite.mkdir()
    conftest = (ROOT / "tests" / "gpu" / "conftest.py").read_text(encoding="utf-8")
    there = conftest.replace("torch.cuda.is_available()", "True")
    there = there.replace('torch.device("cuda")', 'torch.device("cpu")')
    (suite / "conftest.py").write_text(there, encoding="utf-8")
    (suite / "test_some.py").write_text(tests, encoding="utf-8")


# A test that takes an hour by the clock that budgets go by.
AN_HOUR = """
def test_one():
    later = time.monotonic() + 3600
    time.monotonic = lambda: later
"""


def test_the_gpu_suite_ends_in_time_and_goes_on(tmp_path: Path) -> None:
    wrong = "def test_none(): assert not Path(__file__).parent.with_name('wrong').exists(), 'row 3'"
    text = f"import time\nfrom pathlib import Path\n{wrong}{AN_HOUR}def test_two(): pass\n"
    write_suite(tmp_path, text)
    (tmp_path / "wrong").touch()
    done = tmp_path / "new" / "done.txt"
    first = run_suite(tmp_path, "--budget", "600", "--done", str(done))
    assert first.returncode == AGAIN, first.stdout + first.stderr
    assert "the budget of 600 s is spent: run again" in first.stdout
    # What failed is told all the same.
    assert "AssertionError: row 3" in first.stdout
    assert "1 failed, 1 passed" in first.stdout.splitlines()[-1]
    assert done.read_text().endswith("::test_one\n")
    (tmp_path / "wrong").unlink()
    second = run_suite(tmp_path, "--done", str(done))
    assert "2 passed, 1 deselected" in second.stdout
    third = run_suite(tmp_path, "--done", str(done))
    assert (third.returncode, "3 deselected" in third.stdout) == (0, True)


def test_the_last_test_may_take_longer_than_the_budget(tmp_path: Path) -> None:
    write_suite(tmp_path, f"import time\n{AN_HOUR}")
    only = run_suite(tmp_path, "--budget", "600", "--done", str(tmp_path / "done.txt"))
    assert only.returncode == 0, only.stdout


def test_parts_of_the_gpu_suite_are_all_of_it(tmp_path: Path) -> None:
    """Each test in one part, tests of one case in the same, no part with most of them."""
    write_suite(
        tmp_path,
        "import pytest\n"
        "@pytest.mark.parametrize('backend', ['cuda', 'triton', 'dense'])\n"
        "@pytest.mark.parametrize('size', range(5))\n"
        "def test_sizes(size, backend): pass\n"
        "@pytest.mark.parametrize(('op', 'backend'), [('a', 'cuda'), ('a', 'dense'), ('b', 'x')])\n"
        "def test_ops(op, backend): pass\n"
        "def test_alone(): pass\n",
    )
    parts = []
    for part in (1, 2):
        done = tmp_path / f"done-{part}.txt"
        ended = run_suite(tmp_path, "--part", f"{part}/2", "--done", str(done))
        assert ended.returncode == 0, ended.stdout
        parts.append(done.read_text(encoding="utf-8").split())
    everything = [test for tests in parts for test in tests]
    assert len(everything) == len(set(everything)) == 19
    assert sorted(len(tests) for tests in parts) == [9, 10]
    for tests in parts:
        for case in ("size0", "0-", "1-", "2-", "3-", "4-", "a-"):
            there = sum(f"[{case}" in test for test in tests)
            assert there in (0, 2 if case == "a-" else 3), (case, tests)
    assert run_suite(tmp_path, "--part", "3/2").returncode == 4


def test_the_gpu_suite_goes_on_without_what_kills_it(tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    conftest = (ROOT / "tests" / "gpu" / "conftest.py").read_text(encoding="utf-8")
    conftest = conftest.replace("torch.cuda.is_available()", "True")
    broken = (
        "\ndef check_usable(device):\n"
        "    if HERE.with_name('broken').exists():\n"
        "        HERE.with_name('broken').unlink()\n"
        "        raise BrokenContextError('illegal memory access')\n\n\n"
    )
    head, middle, tail = conftest.partition("\n\ndef pytest_addoption")
    (suite / "conftest.py").write_text(head + broken + middle + tail, encoding="utf-8")
    (suite / "test_some.py").write_text(
        "import os, time, pytest\nfrom pathlib import Path\n"
        "BACKENDS = ('cuda-skinny', 'cuda-wide', 'cuda-tiles', 'triton', 'auto', 'dense')\n"
        "def hang(m): time.sleep(60)\n"
        "@pytest.mark.parametrize('backend', BACKENDS)\n"
        "@pytest.mark.parametrize('size', [1, 2, 3, 4])\n"
        "def test_it(size, backend):\n"
        "    if backend == 'cuda-wide': hang(33)\n"
        "    if backend == 'cuda-tiles': os.kill(os.getpid(), 11)\n"
        "    if backend == 'triton':\n"
        "        Path(__file__).parent.with_name('broken').touch()\n"
        "        assert False, 'row 3 is wrong'\n"
        "    assert backend != 'dense', 'differs'\n",
        encoding="utf-8",
    )
    done = tmp_path / "done.txt"
    options = ("--patience", "2", "--most-failures", "2", "--done", str(done))
    results = [run_suite(tmp_path, *options) for _ in range(4)]
    told = "\n".join(result.stdout + result.stderr for result in results)
    assert [result.returncode for result in results] == [BROKEN, -11, BROKEN, 1], told
    assert "test_some.py:4 hang m=33" in results[0].stderr
    assert "row 3 is wrong" in results[2].stdout
    assert "CUDA cannot be used any more: illegal memory access" in results[2].stdout
    # All four of skinny passed; `auto` may choose what hangs; dense stopped after two failures.
    assert done.read_text(encoding="utf-8").count("cuda-skinny]") == 4
    assert "a process died of suite/test_some.py::test_it[1-cuda-wide]: hung" in results[3].stdout
    assert "2 failed" in results[3].stdout
    assert "2 skipped" in results[3].stdout
    assert "auto" not in done.read_text(encoding="utf-8")


def test_a_suite_that_only_skips_has_shown_nothing(tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    conftest = (ROOT / "tests" / "gpu" / "conftest.py").read_text(encoding="utf-8")
    (suite / "conftest.py").write_text(conftest, encoding="utf-8")
    skipped = "import pytest\ndef test_one(): pytest.skip('the library is not there')\n"
    (suite / "test_some.py").write_text(skipped, encoding="utf-8")
    assert run_suite(tmp_path, "--done", str(tmp_path / "done.txt")).returncode == 1
    assert run_suite(tmp_path).returncode == 0


FRONT_END = (
    "hypothesis",
    "transformers",
    "yaml",
    "typer",
    "rich",
    "jinja2",
    "psutil",
    "accelerate",
)
MORE = ("matplotlib", "scipy", "peft", "huggingface_hub", "pytest_benchmark", "xdist", "datasets")


def test_a_short_visit_needs_torch_triton_numpy_and_pytest_only(tmp_path: Path) -> None:
    """Every step of it but the build: its modules are imported, its tests collected."""
    hide = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Rest:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        hidden = name.partition('.')[0] in {(*FRONT_END, *MORE)!r}\n"
        "        return None if hidden else PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Rest()\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide, encoding="utf-8")
    every = steps(tmp_path, tmp_path, tmp_path)
    known = {step.name: step for step in every}
    last = FIRST.index("engine-8b")  # whole models need what makes them
    names = [name for some in FIRST[:last] for name in ([some] if isinstance(some, str) else some)]
    first = [step for name in names for step in steps_named(name, every)]
    modules = {step.command[2] for step in first if step.command[1] == "-m"} - {"pytest"}
    paths = {word for step in first for word in step.command if word.startswith("tests/gpu")}
    pytest_options = known["quick"].command[3 : known["quick"].command.index("-k")]
    options = [word for word in pytest_options if not word.startswith(("tests/", "--done"))]
    code = (
        f"import importlib, pytest, sys\nfor name in {sorted(modules)!r}:\n"
        "    importlib.import_module(name)\n"
        f"sys.exit(pytest.main([*{options!r}, '--collect-only', *{sorted(paths)!r}]))"
    )
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
    done = subprocess.run(
        python(code), env=variables, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "tests collected" in done.stdout
