import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import normal

from secateur.errors import SecateurError
from secateur.lowrank import (
    Factors,
    break_even_rank,
    check_rank,
    parameters_of,
    storage_complaint,
)

sizes = st.integers(1, 300)


def test_what_factors_tell_of_themselves() -> None:
    factors = Factors(normal(6, 2), normal(2, 9))
    assert (factors.shape, factors.rank, factors.num_parameters) == ((6, 9), 2, 30)
    assert torch.equal(factors.dense(), normal(6, 2) @ normal(2, 9))
    half = factors.to(torch.bfloat16)
    assert half.up.dtype == half.down.dtype == torch.bfloat16
    assert torch.equal(half.up, factors.up.bfloat16())


@given(sizes, sizes)
def test_break_even_rank_is_the_largest_that_stores_no_more(rows: int, columns: int) -> None:
    rank = break_even_rank(rows, columns)
    assert parameters_of(rank, rows, columns) <= rows * columns
    assert parameters_of(rank + 1, rows, columns) > rows * columns
    assert storage_complaint(rank, rows, columns) is None
    assert storage_complaint(rank + 1, rows, columns) is not None


def test_complaint_has_the_figures() -> None:
    text = storage_complaint(600, 1000, 1000)
    assert text == (
        "rank 600 of a weight [1000, 1000] stores 1,200,000 values, more than the 1,000,000 of "
        "the dense weight; the break-even rank is 500"
    )


@pytest.mark.parametrize("rank", [0, -1, 6, 100])
def test_a_rank_that_is_not_there(rank: int) -> None:
    message = rf"a rank from 1 to 5 for a weight \[5, 8\], got {rank}"
    with pytest.raises(SecateurError, match=message):
        check_rank(rank, 5, 8)


@pytest.mark.parametrize("rank", [1, 4, 5])
def test_a_rank_above_break_even_is_allowed(rank: int) -> None:
    check_rank(rank, 5, 8)


def test_factors_that_do_not_fit() -> None:
    with pytest.raises(SecateurError, match=r"down \[r, K\], got \[6, 2\] and \[3, 9\]"):
        Factors(normal(6, 2), normal(3, 9))
    with pytest.raises(SecateurError, match=r"got \[6\] and \[3, 9\]"):
        Factors(normal(6), normal(3, 9))
    with pytest.raises(SecateurError, match="a rank of at least 1, got 0"):
        Factors(normal(6, 0), normal(0, 9))
    with pytest.raises(SecateurError, match=r"one dtype .* torch.float64 on cpu and torch.float32"):
        Factors(normal(6, 2), normal(2, 9).float())
