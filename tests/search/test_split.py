import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.search.split import split_items


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda units: len(set(units)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_splits_are_disjoint_and_whole_and_keep_units_together(
    units: list[int], fraction: float, seed: int
) -> None:
    split = split_items(units, fraction, seed)
    assert sorted(split.validation + split.test) == list(range(len(units)))
    assert split.validation
    assert split.test
    sides = [{units[item] for item in side} for side in (split.validation, split.test)]
    assert not sides[0] & sides[1]
    assert split == split_items(units, fraction, seed)


def test_half_is_half_and_the_seed_decides() -> None:
    splits = [split_items(range(100), 0.5, seed) for seed in range(3)]
    assert all(len(split.validation) == len(split.test) == 50 for split in splits)
    assert len({split.validation for split in splits}) == 3
    assert len(split_items(range(100), 0.2, 0).validation) == 20


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_fractions_that_leave_a_side_empty(fraction: float) -> None:
    with pytest.raises(SecateurError, match="expected a validation fraction above 0 and below 1"):
        split_items(range(5), fraction, 0)


def test_refuses_a_seed_that_not_all_generators_take() -> None:
    with pytest.raises(
        SecateurError, match=r"expected 0 <= seed < 2\^32, got 18446744073709551616"
    ):
        split_items(range(5), 0.5, 2**64)


def test_refuses_a_single_unit() -> None:
    with pytest.raises(SecateurError, match="expected at least 2 items to split, but got 1"):
        split_items([7, 7, 7], 0.5, 0)
