"""The best choices for a limit: a multiple-choice knapsack, solved exactly by HiGHS.

One binary variable for each form of each unit and for each removal. The forms of a unit and the
removals that take it away sum to one; a block has at most one removal; at least one block stays.
What the choices take stays within the limit, and the loss is the smallest possible. What is removed
may be held near to what another selection removes, and away from what was tried (`Nearby`).
"""

import ctypes
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import SecateurError
from secateur.plan.table import (
    DENSE,
    LEAST_GAIN,
    Choice,
    Limit,
    Removal,
    Selection,
    Table,
    Unit,
    select,
)

Floats = NDArray[np.float64]

# Of all losses together: among equal losses the fewest changes win.
_TIE = 1e-9

# What the largest loss is to the solver: it ends within 1e-6 of the best sum, however large losses
# are, and scipy has no option for that.
_LARGEST = 1e6


@dataclass(frozen=True)
class _Variables:
    """What each variable of the program stands for."""

    forms: tuple[tuple[Unit, Choice], ...]
    removals: tuple[Removal, ...]

    def __len__(self) -> int:
        return len(self.forms) + len(self.removals)


@dataclass(frozen=True)
class Nearby:
    """What a selection may remove; removals are given by name."""

    removed: frozenset[str]
    """What is removed where one begins."""
    changes: int
    """Of these that may be put back and others that may go, together at most."""
    tried: Collection[frozenset[str]] = ()
    """All that was removed in selections that are not to come again."""


def worthwhile(table: Table, limit: Limit) -> Table:
    """The table without forms that save less than a twentieth of what their dense layer takes."""
    units = tuple(
        replace(
            unit,
            choices=tuple(
                choice
                for choice in unit.choices
                if choice.form == DENSE
                or limit.of(choice) <= (1.0 - LEAST_GAIN) * limit.of(unit.dense)
            ),
        )
        for unit in table.units
    )
    return replace(table, units=units)


def solve(table: Table, limit: Limit) -> Selection:
    """The selection of smallest loss within a limit.

    Raises:
        SecateurError: no selection keeps to it, with the least that can be reached; scipy is
            not installed.
    """
    found = find(table, limit)
    if found is None:
        raise _unreachable(worthwhile(table, limit), limit)
    return found


def find(table: Table, limit: Limit, nearby: Nearby | None = None) -> Selection | None:
    """The same, None where no selection keeps to the limit and is nearby.

    Raises:
        SecateurError: scipy is not installed.
    """
    offered = worthwhile(table, limit)
    variables = _variables(offered)
    takes = _takes(variables, limit)
    losses = np.array(
        [choice.loss + _TIE * (choice.form != DENSE) for _, choice in variables.forms]
        + [removal.loss + _TIE for removal in variables.removals]
    )
    room = limit.value - offered.rest(limit)
    # The solver takes what is above the limit by a millionth of its largest term to keep to it:
    # it is asked for less until it does.
    margin = 0.0
    while found := _minimise(offered, variables, losses, takes, room - margin, nearby):
        if not (excess := limit.excess(found)):
            return found
        margin = 2 * margin + excess
    # What is just within the limit may have been cut off.
    found = _minimise(offered, variables, takes, takes, room, nearby) if margin else None
    return None if found is None or limit.excess(found) else found


def least(table: Table, limit: Limit) -> Selection:
    """The selection that takes least of what is limited, whatever it loses.

    Raises:
        SecateurError: scipy is not installed.
    """
    offered = worthwhile(table, limit)
    variables = _variables(offered)
    takes = _takes(variables, limit)
    found = _minimise(offered, variables, takes, None, 0.0)
    assert found is not None
    return found


def _unreachable(table: Table, limit: Limit) -> SecateurError:
    best = least(table, limit)
    if limit.num_bytes is not None:
        return SecateurError(
            f"expected a limit that can be reached, but {limit.num_bytes:,} bytes are less than "
            f"the smallest plan's {best.num_bytes:,} (dense: {table.dense_bytes:,})"
        )
    speedup = table.dense_milliseconds / best.milliseconds
    return SecateurError(
        f"expected a limit that can be reached, but {limit.milliseconds:.4g} ms are less than the "
        f"fastest plan's {best.milliseconds:.4g} ms, {speedup:.2f} times as fast as dense "
        f"({table.dense_milliseconds:.4g} ms)"
    )


def _variables(table: Table) -> _Variables:
    forms = tuple((unit, choice) for unit in table.units for choice in unit.choices)
    return _Variables(forms, table.removals)


def _takes(variables: _Variables, limit: Limit) -> Floats:
    """What each variable adds to what the rest takes."""
    return np.array(
        [limit.of(choice) for _, choice in variables.forms]
        + [-limit.of(removal) for removal in variables.removals],
        dtype=np.float64,
    )


def _rows(table: Table, variables: _Variables) -> tuple[Floats, Floats, Floats]:
    """Constraints `low <= rows @ x <= high` that do not depend on the limit."""
    units = {unit.name: place for place, unit in enumerate(table.units)}
    blocks = sorted({removal.block for removal in variables.removals})
    rows = np.zeros((len(units) + len(blocks) + 1, len(variables)))
    for column, (unit, _) in enumerate(variables.forms):
        rows[units[unit.name], column] = 1.0
    for column, removal in enumerate(variables.removals, start=len(variables.forms)):
        for name in removal.units:
            rows[units[name], column] = 1.0
        rows[len(units) + blocks.index(removal.block), column] = 1.0
        rows[-1, column] = 1.0 if removal.part == "block" else 0.0
    low = np.concatenate([np.ones(len(units)), np.zeros(len(blocks) + 1)])
    high = np.concatenate([np.ones(len(units) + len(blocks)), [max(0, table.num_blocks - 1)]])
    return rows, low, high


def _nearby_rows(variables: _Variables, nearby: Nearby) -> tuple[Floats, Floats, Floats]:
    """Constraints on the number of removals in which a selection differs from others."""
    names = [removal.name for removal in variables.removals]
    others = [nearby.removed, *nearby.tried]
    rows = np.zeros((len(others), len(variables)))
    for row, other in zip(rows, others, strict=True):
        row[len(variables.forms) :] = [-1.0 if name in other else 1.0 for name in names]
    # A row is the number of differences less that of the other's removals.
    counts = np.array([len(other.intersection(names)) for other in others])
    low, high = 1.0 - counts, np.full(len(others), np.inf)
    low[0], high[0] = -np.inf, nearby.changes - counts[0]
    return rows, low, high


def _minimise(
    table: Table,
    variables: _Variables,
    objective: Floats,
    takes: Floats | None,
    room: float,
    nearby: Nearby | None = None,
) -> Selection | None:
    """None where no choice keeps to the limit."""
    if not len(variables):
        return select(table, {}) if takes is None or room >= 0 else None
    optimize = _optimize()
    rows, low, high = _rows(table, variables)
    constraints = [optimize.LinearConstraint(rows, low, high)]
    if nearby is not None:
        constraints.append(optimize.LinearConstraint(*_nearby_rows(variables, nearby)))
    if takes is not None:
        # In parts of the largest, so that the solver's tolerance means the same in every unit.
        unit = float(np.abs(takes).max()) or 1.0
        constraints.append(optimize.LinearConstraint(takes / unit, -np.inf, room / unit))
    scale = float(np.abs(objective).max()) or 1.0
    # HiGHS now and then writes a line for its own developers, whatever it is told to display.
    with quiet_libraries():
        result = optimize.milp(
            objective * (_LARGEST / scale),
            constraints=constraints,
            integrality=np.ones(len(variables)),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        return None
    return _read(table, variables, np.asarray(result.x) > 0.5)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While this is open, nothing that the process writes reaches its standard output."""
    c_library = ctypes.CDLL(None)
    sys.stdout.flush()
    c_library.fflush(None)
    saved = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        # Into nothing, too: a pipe is written to only when C's buffer is full.
        c_library.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


def _read(table: Table, variables: _Variables, taken: NDArray[np.bool_]) -> Selection:
    forms = {
        unit.name: choice.form
        for (unit, choice), is_taken in zip(variables.forms, taken, strict=False)
        if is_taken
    }
    first = len(variables.forms)
    removals = [
        removal
        for removal, is_taken in zip(variables.removals, taken[first:], strict=True)
        if is_taken
    ]
    return select(table, forms, removals)


def _optimize() -> Any:
    try:
        from scipy import optimize
    except ImportError:
        raise SecateurError("a plan needs scipy: pip install 'secateur[plan]'") from None
    return optimize
