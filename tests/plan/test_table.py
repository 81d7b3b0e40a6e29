"""What selections take, by hand."""

from dataclasses import replace

import pytest

from secateur.errors import SecateurError
from secateur.plan.table import Choice, Limit, Removal, Table, Unit, retimed, select

DENSE = Choice("dense", 3.0, 30, 0.0)
CUT = Choice("rank 16", 1.0, 8, 0.25, 16)
BLOCK = Removal(0, "block", ("a", "b"), 0.5, 4, 2.0)
MLP = Removal(0, "mlp", ("b",), 0.25, 2, 1.0)
LAST = Removal(1, "block", ("c",), 0.5, 4, 2.0)
TABLE = Table(
    (
        Unit("a", 0, (48, 32), (DENSE, CUT)),
        Unit("b", 0, (48, 32), (DENSE,)),
        Unit("c", 1, (48, 32), (DENSE, CUT)),
    ),
    (BLOCK, MLP, LAST),
    2,
    10.0,
    100,
)


def test_dense_is_the_rest_and_all_units() -> None:
    assert TABLE.dense_milliseconds == 19.0
    assert TABLE.dense_bytes == 190
    found = select(TABLE, {})
    assert (found.milliseconds, found.num_bytes, found.loss) == (19.0, 190, 0.0)
    assert found.is_dense


def test_forms_and_removals_add_up() -> None:
    found = select(TABLE, {"a": "rank 16"}, [MLP])
    # 10 of the rest, 1 of a, 3 of c, less what went beside b.
    assert found.milliseconds == 13.75
    assert found.num_bytes == 100 + 8 + 30 - 2
    assert found.loss == 1.25
    assert set(found.forms) == {"a", "c"}
    assert not found.is_dense


def test_savings_as_they_were_measured() -> None:
    selection = select(TABLE, {"a": "rank 16"}, [MLP])
    # 5.25 of 19 ms were to be saved; half of that is.
    slow = retimed(TABLE, selection, 19.0 - 5.25 / 2)
    assert slow.dense_milliseconds == 19.0
    [mlp] = [removal for removal in slow.removals if removal.name == MLP.name]
    again = select(slow, {"a": "rank 16"}, [mlp])
    assert again.milliseconds == 19.0 - 5.25 / 2
    assert (again.loss, again.num_bytes) == (selection.loss, selection.num_bytes)
    # What cannot be believed is not.
    slowest = retimed(TABLE, selection, 25.0)
    assert slowest == slow
    assert retimed(TABLE, select(TABLE, {}), 18.0) == TABLE
    # Twice what a cut to a third saves would be more than the whole.
    fastest = retimed(TABLE, selection, 1.0)
    assert [choice.milliseconds for choice in fastest.units[0].choices] == [3.0, 0.0]


def test_losses_may_differ_from_their_sum() -> None:
    table = replace(TABLE, rest_loss=-0.5)
    assert select(table, {"a": "rank 16"}, [MLP]).loss == 0.75


def test_excluded_combinations() -> None:
    with pytest.raises(SecateurError, match=r"at most one removal a block, got block 0, mlp of 0"):
        select(TABLE, {}, [BLOCK, MLP])
    with pytest.raises(SecateurError, match="b has a form, but it is removed"):
        select(TABLE, {"b": "dense"}, [MLP])
    with pytest.raises(SecateurError, match="expected a block to be left"):
        select(TABLE, {}, [BLOCK, LAST])
    with pytest.raises(SecateurError, match=r"form of b among dense, got 'rank 16'"):
        select(TABLE, {"b": "rank 16"})


@pytest.mark.parametrize(
    "values",
    [{}, {"milliseconds": 1.0, "num_bytes": 1}, {"milliseconds": 0.0}, {"num_bytes": -1}],
)
def test_one_limit(values: dict[str, int]) -> None:
    with pytest.raises(SecateurError, match="expected one limit above 0"):
        Limit(**values)


def test_faulty_tables() -> None:
    with pytest.raises(SecateurError, match="begin with dense"):
        Unit("a", 0, (48, 32), (CUT, DENSE))
    with pytest.raises(SecateurError, match="to differ"):
        Unit("a", 0, (48, 32), (DENSE, CUT, CUT))
    unit = Unit("a", 0, (48, 32), (DENSE,))
    with pytest.raises(SecateurError, match="different names"):
        Table((unit, unit), (), 2, 1.0, 1)
    with pytest.raises(SecateurError, match=r"not there: \['b'\]"):
        Table((unit,), (MLP,), 2, 1.0, 1)
