"""The knapsack against every selection that there is."""

import builtins
import ctypes
import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tables import brute_force, random_table

from secateur.errors import SecateurError
from secateur.plan.solve import Nearby, find, least, quiet_libraries, solve
from secateur.plan.table import Choice, Limit, Removal, Selection, Table, Unit


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(1, 3),
    units_each=st.integers(1, 2),
    parts=st.booleans(),
    share=st.floats(0.2, 1.1),
    in_bytes=st.booleans(),
)
def test_no_selection_is_better(
    seed: int, num_blocks: int, units_each: int, parts: bool, share: float, in_bytes: bool
) -> None:
    table = random_table(seed, num_blocks, units_each, parts)
    limit = (
        Limit(num_bytes=int(share * table.dense_bytes))
        if in_bytes
        else Limit(milliseconds=share * table.dense_milliseconds)
    )
    expected = brute_force(table, limit)
    if expected is None:
        with pytest.raises(SecateurError, match="expected a limit that can be reached"):
            solve(table, limit)
        return
    found = solve(table, limit)
    taken = found.num_bytes if in_bytes else found.milliseconds
    assert taken <= limit.value * (1 + 1e-9)
    # The solver's integrality tolerance and the tie-breaker, both far below any difference drawn.
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_large_models_keep_to_their_bytes_and_to_their_times(seed: int) -> None:
    """A solver that allows a millionth of the largest term allows hundreds of bytes here."""
    table = random_table(seed, 3, 2, True, scale=10**7 + 19)
    for share in (0.5, 0.7, 0.9):
        free = solve(table, Limit(milliseconds=share * table.dense_milliseconds))
        for below in (1, 10, 100):
            in_bytes = Limit(num_bytes=free.num_bytes - below)
            assert_best(table, in_bytes, find(table, in_bytes))
            in_time = Limit(milliseconds=free.milliseconds * (1 - below * 1e-8))
            assert_best(table, in_time, find(table, in_time))


@pytest.mark.parametrize("seed", range(8))
def test_the_smallest_selection_is_found_at_its_very_size(seed: int) -> None:
    table = random_table(seed, 3, 2, True, scale=10**7 + 19)
    size = least(table, Limit(num_bytes=1)).num_bytes
    assert_best(table, Limit(num_bytes=size), find(table, Limit(num_bytes=size)))
    assert find(table, Limit(num_bytes=size - 1)) is None


def assert_best(table: Table, limit: Limit, found: Selection | None) -> None:
    expected = brute_force(table, limit)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert limit.excess(found) == 0
        assert found.loss == pytest.approx(expected.loss, abs=1e-6)


def table_of(*choices: Choice, removals: tuple[Removal, ...] = (), rest: float = 2.0) -> Table:
    unit = Unit("u", 0, (64, 48), (Choice("dense", 10.0, 100, 0.0), *choices))
    return Table((unit,), removals, 2, rest, 50)


def test_a_gain_below_a_twentieth_stays_dense() -> None:
    table = table_of(Choice("rank 16", 9.6, 96, 0.0, 16), rest=0.0)
    assert solve(table, Limit(milliseconds=10.0)).is_dense
    with pytest.raises(SecateurError, match=r"fastest plan's 10 ms, 1\.00 times"):
        solve(table, Limit(milliseconds=9.7))
    just = table_of(Choice("rank 16", 9.5, 95, 0.0, 16), rest=0.0)
    assert solve(just, Limit(milliseconds=9.7)).forms["u"].form == "rank 16"


def test_without_need_nothing_is_changed_even_where_it_would_cost_nothing() -> None:
    table = table_of(Choice("rank 16", 5.0, 50, 0.0, 16), rest=0.0)
    assert solve(table, Limit(milliseconds=10.0)).is_dense


def free_blocks(count: int) -> Table:
    """Blocks that all may go: the first loses much, the others nothing."""
    choices = (Choice("dense", 10.0, 100, 0.0), Choice("rank 16", 5.0, 50, 1e-7, 16))
    units = tuple(Unit(f"u{block}", block, (64, 48), choices) for block in range(count))
    removals = tuple(
        Removal(unit.block, "block", (unit.name,), 1.0, 5, 0.0 if unit.block else 4.0)
        for unit in units
    )
    return Table(units, removals, count, 2.0, 50)


@pytest.mark.parametrize("needed", [0, 1, 3])
def test_no_more_goes_than_must_where_it_would_cost_nothing(needed: int) -> None:
    """However much other choices lose."""
    table = free_blocks(8)
    found = solve(table, Limit(num_bytes=table.dense_bytes - 105 * needed))
    assert len(found.removals) == needed
    assert all(choice.form == "dense" for choice in found.forms.values())


def test_what_is_removed_has_no_form() -> None:
    removal = Removal(0, "block", ("u",), 1.0, 5, 0.1)
    table = table_of(Choice("rank 16", 6.0, 60, 0.5, 16), removals=(removal,))
    found = solve(table, Limit(milliseconds=8.0))
    assert found.removals == (removal,)
    assert found.forms == {}
    assert (found.milliseconds, found.num_bytes, found.loss) == (1.0, 45, 0.1)


def test_the_last_block_stays() -> None:
    removal = Removal(0, "block", ("u",), 1.0, 5, 0.0)
    unit = Unit("u", 0, (64, 48), (Choice("dense", 10.0, 100, 0.0),))
    table = Table((unit,), (removal,), 1, 2.0, 50)
    assert least(table, Limit(milliseconds=1.0)).is_dense


def test_unreachable_limits_say_what_can_be_reached() -> None:
    table = table_of(Choice("rank 16", 4.0, 40, 0.5, 16))
    message = r"but 3 ms are less than the fastest plan's 6 ms, 2\.00 times as fast as dense"
    with pytest.raises(SecateurError, match=message):
        solve(table, Limit(milliseconds=3.0))
    with pytest.raises(
        SecateurError, match=r"80 bytes are less than the smallest plan's 90 \(dens"
    ):
        solve(table, Limit(num_bytes=80))


def test_a_table_without_choices() -> None:
    table = Table((), (), 2, 5.0, 50)
    assert solve(table, Limit(milliseconds=5.0)).is_dense
    with pytest.raises(SecateurError, match="can be reached"):
        solve(table, Limit(milliseconds=4.0))


def test_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "scipy":
            raise ImportError(name)
        return genuine(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[plan\]'"):
        solve(table_of(), Limit(milliseconds=20.0))


def test_what_a_library_writes_does_not_reach_the_standard_output() -> None:
    """`secateur plan --json` in a pipe: C's own buffer is written when the process ends."""
    code = (
        "import ctypes\n"
        "from secateur.plan.solve import quiet_libraries\n"
        "print('before')\n"
        "with quiet_libraries(): ctypes.CDLL(None).puts(b'of the library')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"before", b"after"]


def test_the_standard_output_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), quiet_libraries():
        raise KeyError
    ctypes.CDLL(None).puts(b"heard")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "heard\n"


@pytest.mark.parametrize("seed", range(4))
def test_removals_near_to_others_and_away_from_what_was_tried(seed: int) -> None:
    table = random_table(seed, 3, 2, True)
    limit = Limit(milliseconds=0.7 * table.dense_milliseconds)
    begun = frozenset({table.removals[0].name})
    tried: list[frozenset[str]] = []
    while (found := find(table, limit, Nearby(begun, 2, tuple(tried)))) is not None:
        names = frozenset(removal.name for removal in found.removals)
        assert len(names ^ begun) <= 2
        assert names not in tried
        assert found.milliseconds <= limit.value + 1e-9
        # Each is the best there is but for those before.
        if not tried:
            first = found.loss
        assert found.loss >= first - 1e-6
        tried.append(names)
    assert len(tried) == len(_reachable(table, limit, begun))


def _reachable(table: Table, limit: Limit, begun: frozenset[str]) -> set[frozenset[str]]:
    """Sets of removals that are near enough and with which some forms keep to the limit."""
    found = set()
    for count in range(4):
        for chosen in combinations(table.removals, count):
            names = frozenset(removal.name for removal in chosen)
            if len({removal.block for removal in chosen}) < count or len(names ^ begun) > 2:
                continue
            if sum(removal.part == "block" for removal in chosen) == table.num_blocks:
                continue
            gone = {name for removal in chosen for name in removal.units}
            taken = table.rest_milliseconds - sum(removal.milliseconds for removal in chosen)
            for unit in table.units:
                if unit.name not in gone:
                    dense = unit.dense.milliseconds
                    fast = [c.milliseconds for c in unit.choices if c.milliseconds <= 0.95 * dense]
                    taken += min([dense, *fast])
            if taken <= limit.value + 1e-9:
                found.add(names)
    return found
