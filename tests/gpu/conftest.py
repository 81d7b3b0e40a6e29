"""Tests of this folder need an NVIDIA GPU and are skipped, all alike, where there is none.

    pytest tests/gpu/accuracy --budget 450 --done passed.txt

`--budget` ends a run in time; with `--done` the next run goes on where it ended.
"""

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu.accuracy_checks import case_of

HERE = Path(__file__).parent
AGAIN = 75
"""Exit status of a run that its budget ended: sysexits.h's "try again"."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tests on a GPU")
    group.addoption("--budget", type=float, help="seconds after which no further test starts")
    group.addoption("--done", type=Path, help="file of tests that passed: read, and added to")


_STARTED = pytest.StashKey[float]()
_PASSED_BEFORE = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STARTED] = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(skip)
    done = _done(config)
    passed = set(done.read_text(encoding="utf-8").split("\n")) if done and done.is_file() else set()
    again = {item for item in here if item.nodeid in passed}
    config.stash[_PASSED_BEFORE] = len(again)
    if again:
        config.hook.pytest_deselected(items=list(again))
        items[:] = [item for item in items if item not in again]


def _done(config: pytest.Config) -> Path | None:
    # The options are known only where this folder was named on the command line.
    done: Path | None = config.getoption("done", None)
    return done


def pytest_runtest_setup(item: pytest.Item) -> None:
    budget = item.config.getoption("budget", None)
    if budget and time.monotonic() - item.config.stash[_STARTED] > budget:
        pytest.exit(f"the budget of {budget:.0f} s is spent: run again", returncode=AGAIN)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    done = _done(item.config)
    if done and call.when == "call" and call.excinfo is None:
        done.parent.mkdir(parents=True, exist_ok=True)
        with done.open("a", encoding="utf-8") as file:
            file.write(item.nodeid + "\n")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    nothing_left = exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    if nothing_left and session.config.stash.get(_PASSED_BEFORE, 0):
        session.exitstatus = pytest.ExitCode.OK


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
