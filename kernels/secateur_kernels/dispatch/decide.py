"""Dispatch as ops use it: the table of the device is read once, choices are remembered."""

import warnings
from functools import cache, lru_cache

from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.choose import choose
from secateur_kernels.dispatch.problem import DeviceFacts, Problem
from secateur_kernels.dispatch.table import (
    SHIPPED,
    Table,
    load_table,
    table_of_this_version,
    table_path,
)
from secateur_kernels.errors import SecateurError
from secateur_kernels.settings import cache_folder


@cache
def measured_times(device: DeviceFacts) -> Table | None:
    """What ships for the device, overlaid with what `secateur tune` measured on this machine.

    What another version measured on this machine, or nobody may read, is passed over with a
    warning.

    Raises:
        SecateurError: the shipped file cannot be used.
    """
    shipped = table_path(SHIPPED, device)
    table = load_table(shipped) if shipped.is_file() else None
    measured, why_not = _measured_here(device)
    if why_not:
        warnings.warn(f"measured times are passed over: {why_not}", stacklevel=2)
    if table is None or measured is None:
        return measured or table
    return table.merged(measured)


def _measured_here(device: DeviceFacts) -> tuple[Table | None, str]:
    try:
        return table_of_this_version(table_path(cache_folder(), device))
    except SecateurError as error:
        return None, str(error)


@lru_cache(maxsize=4096)
def decide(problem: Problem) -> Choice:
    """The choice for a problem; the same one for the life of the process, so that graphs agree."""
    return choose(problem, measured_times(problem.device))


def forget() -> None:
    """Read the tables again at the next call: after tuning, and in tests."""
    measured_times.cache_clear()
    decide.cache_clear()
