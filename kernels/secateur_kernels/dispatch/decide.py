"""Dispatch as ops use it: the table of the device is read once, choices are remembered."""

from functools import cache, lru_cache

from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.choose import choose
from secateur_kernels.dispatch.problem import DeviceFacts, Problem
from secateur_kernels.dispatch.table import SHIPPED, Table, load_tables
from secateur_kernels.settings import cache_folder


@cache
def measured_times(device: DeviceFacts) -> Table | None:
    """What ships for the device, overlaid with what `secateur tune` measured on this machine.

    Raises:
        SecateurError: a file of times cannot be read.
    """
    return load_tables(device, (SHIPPED, cache_folder()))


@lru_cache(maxsize=4096)
def decide(problem: Problem) -> Choice:
    """The choice for a problem; the same one for the life of the process, so that graphs agree."""
    return choose(problem, measured_times(problem.device))


def forget() -> None:
    """Read the tables again at the next call: after tuning, and in tests."""
    measured_times.cache_clear()
    decide.cache_clear()
