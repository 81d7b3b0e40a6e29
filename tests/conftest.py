"""Lets every test import what the tests share (`families`) by name."""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Before any kernel is imported: where there is no GPU, Triton's interpreter runs them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))

# Not on every machine with a GPU.
if find_spec("hypothesis"):
    from thoroughness import register_profile

    register_profile()

# Threads that wait for each other cost more than they bring on tiny models: 15 times the time where
# the cores are shared with other processes.
torch.set_num_threads(1)


COMPILE = {"emulator", "marked", "emulated", "may_depend", "compiled_wheel", "wide_kernels"}
"""Fixtures that compile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks those whose fixtures compile; files with slow tests come first: none of them begins
    when all others are about to end."""
    for item in items:
        if isinstance(item, pytest.Function) and COMPILE.intersection(item.fixturenames):
            item.add_marker("compiled")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither go by what was measured on this machine before, nor leave anything behind."""
    os.environ.setdefault("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module", autouse=True)
def _collector_passes_over_what_was_there_before() -> None:
    """Accelerate collects garbage at the end of every training, and Python does now and then: it
    need not go through the million objects of what was imported each time."""
    gc.collect()
    gc.freeze()
