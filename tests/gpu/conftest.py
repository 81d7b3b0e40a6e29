"""Tests of this folder need an NVIDIA GPU and are skipped, all alike, where there is none.

    pytest tests/gpu/accuracy --budget 450 --done passed.txt

`--budget` ends a run in time; with `--done` the next run goes on where it ended. `--part 2/4` is
one of several runs, each with a file of its own for `--done`, that may go on at once. A kernel that
hangs (`--patience`) or breaks the CUDA context ends the process with status 76; the next one leaves
out what else is tested of that kernel.
"""

import gc
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.accuracy_checks import case_of

from secateur_kernels.testing.attempts import (
    BROKEN,
    Attempts,
    BrokenContextError,
    check_usable,
)

HERE = Path(__file__).parent
AGAIN = 75
"""Exit status of a run that its budget ended: sysexits.h's "try again"."""


def _part(text: str) -> tuple[int, int]:
    """(k, n) of "k/n"."""
    part, parts = (int(number) for number in text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tests on a GPU")
    group.addoption("--budget", type=float, help="seconds after which no second test starts")
    group.addoption("--part", type=_part, help="k/n: the k-th of n parts of about the same length")
    group.addoption("--done", type=Path, help="file of tests that passed: read, and added to")
    group.addoption("--patience", type=float, help="seconds after which a test counts as hung")
    group.addoption("--most-failures", type=int, help="of one kernel; its other tests are left out")


_STARTED = pytest.StashKey[float]()
_PASSED_BEFORE = pytest.StashKey[int]()
_ATTEMPTS = pytest.StashKey[Attempts]()
_FAILURES = pytest.StashKey[Counter[str]]()
_IS_BROKEN = pytest.StashKey[bool]()
_IS_SPENT = pytest.StashKey[bool]()
_PASSED = pytest.StashKey[int]()
_CHOOSE = ("auto", "cuda")
"""Backends that run whichever kernel they choose."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STARTED] = time.monotonic()
    config.stash[_FAILURES] = Counter()
    config.stash[_PASSED] = 0
    done = _done(config)
    notes = None if done is None else done.with_suffix(".attempts.jsonl")
    # A copy from before pytest catches what is written to it.
    stderr = os.dup(2)
    config.add_cleanup(lambda: os.close(stderr))
    config.stash[_ATTEMPTS] = Attempts(notes, config.getoption("patience", None), stderr)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for death in config.stash[_ATTEMPTS].deaths:
        terminalreporter.write_line(f"a process died of {death.what}: {death.why}")


def _blame(item: pytest.Item) -> str:
    """What a test is a test of: the op, or the file, and the backend."""
    call = getattr(item, "callspec", None)
    values = {} if call is None else call.params
    backend = values.get("backend")
    return f"{values.get('op', item.path.stem)} {backend}" if backend else item.nodeid


def _is_blamed(blame: str, died: set[str]) -> bool:
    """Whether processes died of that, or of a kernel that it may choose."""
    of, _, backend = blame.rpartition(" ")
    chooses = backend in _CHOOSE and any(other.startswith(f"{of} cuda") for other in died)
    return blame in died or chooses


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(skip)
    _leave_out_other_parts(config, items)
    _leave_out_what_killed(config, items)
    done = _done(config)
    passed = set(done.read_text(encoding="utf-8").split("\n")) if done and done.is_file() else set()
    again = {item for item in here if item.nodeid in passed}
    config.stash[_PASSED_BEFORE] = len(again)
    if again:
        config.hook.pytest_deselected(items=list(again))
        items[:] = [item for item in items if item not in again]


def _leave_out_other_parts(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deal the tests to the parts in turns; those of one case stay together, which is made once."""
    part, parts = config.getoption("part", None) or (1, 1)
    cases: dict[str, int] = {}
    mine: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        turn = cases.setdefault(_case(item), len(cases))
        (mine if turn % parts == part - 1 else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = mine


def _case(item: pytest.Item) -> str:
    """What a test has in common with the same test of other backends."""
    call = getattr(item, "callspec", None)
    values = {} if call is None else call.params
    # As parametrised values are named: dtypes and sizes name themselves.
    of = [f"{name}={value}" for name, value in values.items() if name != "backend"]
    return f"{item.nodeid.partition('[')[0]} {of}"


def _leave_out_what_killed(config: pytest.Config, items: list[pytest.Item]) -> None:
    died = {death.blame for death in config.stash[_ATTEMPTS].deaths}
    left_out = [item for item in items if _is_blamed(_blame(item), died)] if died else []
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _done(config: pytest.Config) -> Path | None:
    # The options are known only where this folder was named on the command line.
    done: Path | None = config.getoption("done", None)
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    try:
        with item.config.stash[_ATTEMPTS].trying(item.nodeid, _blame(item)):
            result = yield
            if item.config.stash[_FAILURES][_blame(item)]:
                check_usable(torch.device("cuda"))
        _end_in_time(item, nextitem)
        return result
    except BrokenContextError as error:
        item.session.shouldstop = f"CUDA cannot be used any more: {error}"
        item.config.stash[_IS_BROKEN] = True
        return None


def _end_in_time(item: pytest.Item, following: pytest.Item | None) -> None:
    """Stop in the way that still lets pytest say what failed."""
    budget = item.config.getoption("budget", None)
    if following and budget and time.monotonic() - item.config.stash[_STARTED] > budget:
        item.session.shouldstop = f"the budget of {budget:.0f} s is spent: run again"
        item.config.stash[_IS_SPENT] = True


def pytest_runtest_setup(item: pytest.Item) -> None:
    most = item.config.getoption("most_failures", None)
    if most and item.config.stash[_FAILURES][_blame(item)] >= most:
        pytest.skip(f"{_blame(item)} has failed {most} times")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        item.config.stash[_FAILURES][_blame(item)] += 1
    done = _done(item.config)
    if done and call.when == "call" and call.excinfo is None:
        item.config.stash[_PASSED] += 1
        done.parent.mkdir(parents=True, exist_ok=True)
        with done.open("a", encoding="utf-8") as file:
            file.write(item.nodeid + "\n")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    stash = session.config.stash
    before = stash.get(_PASSED_BEFORE, 0)
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and before:
        session.exitstatus = pytest.ExitCode.OK
    # Where everything is skipped, nothing has been shown.
    nothing = _done(session.config) and not stash[_PASSED] + before
    if session.exitstatus == pytest.ExitCode.OK and (stash[_ATTEMPTS].deaths or nothing):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if exitstatus == pytest.ExitCode.INTERRUPTED and stash.get(_IS_SPENT, False):
        session.exitstatus = AGAIN
    if stash.get(_IS_BROKEN, False):
        session.exitstatus = BROKEN


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _torch_sums_in_fp32() -> Iterator[None]:
    """cuBLAS may otherwise round partial sums to bf16, which no bound here allows."""
    matmul = torch.backends.cuda.matmul
    names = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
        "allow_tf32",
    )
    before = {name: getattr(matmul, name) for name in names}
    for name in names:
        setattr(matmul, name, False)
    yield
    for name, value in before.items():
        setattr(matmul, name, value)


@pytest.fixture(scope="module", autouse=True)
def _memory_goes_back() -> Iterator[None]:
    yield
    case_of.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
