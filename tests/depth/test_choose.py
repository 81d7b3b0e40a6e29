import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.depth.choose import least_influential
from secateur.errors import SecateurError


def test_the_least_goes_first() -> None:
    assert least_influential({0: 0.5, 1: 0.2, 2: 0.4, 3: 0.1}, 3) == (3, 1, 2)
    assert least_influential({0: 0.5, 1: 0.1}, 0) == ()


def test_of_equal_scores_the_higher_index_goes_first() -> None:
    assert least_influential({0: 0.3, 1: 0.1, 2: 0.1, 3: 0.1, 4: 0.3}, 2) == (3, 2)


@given(
    scores=st.dictionaries(st.integers(0, 40), st.sampled_from([0.0, 0.5, 1.0]), min_size=1),
    data=st.data(),
)
def test_nothing_that_stays_scores_less_than_what_goes(
    scores: dict[int, float], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(scores)))
    chosen = least_influential(scores, count)
    assert len(set(chosen)) == count
    for gone in chosen:
        for stays in scores.keys() - set(chosen):
            assert (scores[gone], -gone) < (scores[stays], -stays)


@pytest.mark.parametrize("count", [-1, 4])
def test_refuses_counts_out_of_range(count: int) -> None:
    with pytest.raises(SecateurError, match=f"between 0 and 3 blocks of those.*got {count}"):
        least_influential({2: 0.1, 4: 0.2, 6: 0.3}, count)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_refuses_scores_that_are_not_finite(broken: float) -> None:
    with pytest.raises(SecateurError, match=r"those of blocks \[4\]"):
        least_influential({2: 0.1, 4: broken, 6: 0.3}, 1)
