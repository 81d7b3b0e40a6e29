from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SHAPES, normal, with_spectrum
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import exact_svd, rank_for_fraction, truncate
from secateur.lowrank.svd import Split

# Of a few hundred operations at most, each rounded to 2^-53.
ROUNDING = 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("split", ["balanced", "up"])
def test_full_rank_is_the_matrix(shape: tuple[int, int], split: Split) -> None:
    weight = normal(*shape)
    factors = truncate(weight, min(shape), split)
    torch.testing.assert_close(factors.dense(), weight, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("split", ["balanced", "up"])
def test_error_is_the_tail_and_no_less_is_possible(shape: tuple[int, int], split: Split) -> None:
    weight = normal(*shape, seed=3)
    svd = exact_svd(weight)
    # Of the other LAPACK binding.
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    for rank in range(1, min(shape) + 1):
        difference = weight - svd.factors(rank, split).dense()
        tail = float(np.sqrt((values[rank:] ** 2).sum()))
        assert float(torch.linalg.norm(difference)) == pytest.approx(tail, abs=ROUNDING)
        assert svd.tail(rank) == pytest.approx(tail, abs=ROUNDING)
        largest_left = values[rank] if rank < len(values) else 0.0
        assert float(torch.linalg.matrix_norm(difference, 2)) == pytest.approx(
            largest_left, abs=ROUNDING
        )


def test_where_the_singular_values_go() -> None:
    weight = normal(6, 9)
    values = exact_svd(weight).values[:3]
    balanced, into_up = truncate(weight, 3), truncate(weight, 3, "up")
    for matrix in (balanced.up.T, balanced.down):
        torch.testing.assert_close(matrix @ matrix.T, values.diag(), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(into_up.up.T @ into_up.up, values.square().diag())
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(into_up.down @ into_up.down.T, identity)


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5)])
def test_kept_and_discarded_add_up(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    svd = exact_svd(weight)
    for rank in range(1, min(shape)):
        rest = svd.discarded(rank)
        assert rest.rank == min(shape) - rank
        total = svd.factors(rank).dense() + rest.dense()
        torch.testing.assert_close(total, weight, rtol=0, atol=ROUNDING)
        # What is left over has nothing in common with what is kept.
        assert float((svd.factors(rank).dense() @ rest.dense().T).abs().max()) < ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_precision_is_used_and_does(dtype: torch.dtype) -> None:
    weight = normal(40, 30).to(dtype)
    before = weight.clone()
    svd = exact_svd(weight)
    assert svd.values.dtype == torch.float32
    exact = exact_svd(weight.double())
    assert exact.values.dtype == torch.float64
    # LAPACK: off by a modest multiple of eps times the largest value.
    bound = 20 * torch.finfo(torch.float32).eps * float(exact.values[0])
    assert float((svd.values.double() - exact.values).abs().max()) < bound
    difference = svd.factors(10).dense().double() - exact.factors(10).dense()
    gap = float(exact.values[9] - exact.values[10])
    assert float(torch.linalg.norm(difference)) < bound * float(exact.values[0]) / gap * 10
    assert torch.equal(weight, before)


def test_rank_deficient_and_zero_matrices() -> None:
    weight = with_spectrum(8, 10, torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert exact_svd(weight).tail(2) < ROUNDING
    torch.testing.assert_close(truncate(weight, 5).dense(), weight, rtol=0, atol=ROUNDING)
    zero = truncate(torch.zeros(4, 5), 2)
    assert not zero.dense().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    weight = normal(4, 5)
    weight[1, 2] = weight[3, 4] = bad
    for call in (exact_svd, lambda w: truncate(w, 2)):
        with pytest.raises(SecateurError, match="finite values, got NaN or Inf in 2 places"):
            call(weight)


@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(0, 3), torch.zeros(2, 2).int()]
)
def test_what_is_no_matrix(weight: Tensor) -> None:
    with pytest.raises(SecateurError, match=r"a weight \[N, K\] of floating values, got torch"):
        exact_svd(weight)


def test_ranks_that_are_not_there() -> None:
    weight = normal(4, 6)
    for rank in (0, 5):
        with pytest.raises(SecateurError, match=f"a rank from 1 to 4 .* got {rank}"):
            truncate(weight, rank)
        with pytest.raises(SecateurError, match=f"a rank from 1 to 4 .* got {rank}"):
            exact_svd(weight).discarded(rank)
    with pytest.raises(SecateurError, match="below the full rank 4: it discards nothing"):
        exact_svd(weight).discarded(4)


@pytest.mark.parametrize(
    ("fraction", "rows", "columns", "rank"),
    [
        (0.01, 4096, 16384, 40),  # the paper's GPT-J
        (0.9, 4096, 11008, 3686),
        (0.05, 4096, 4096, 204),
        (0.7, 10, 20, 7),  # 0.7 * 10 in floating point is 7 - 1e-15
        (0.29, 100, 100, 29),
        (1.0, 3, 8, 3),
        (1 / 3, 3, 8, 1),
    ],
)
def test_laser_rank(fraction: float, rows: int, columns: int, rank: int) -> None:
    assert rank_for_fraction(fraction, rows, columns) == rank
    assert rank_for_fraction(fraction, columns, rows) == rank


@settings(max_examples=300)
@given(st.integers(1, 100), st.integers(100, 9000))
def test_laser_rank_is_the_floor_of_decimal_fractions(percent: int, size: int) -> None:
    exact = Fraction(percent, 100) * size
    assert rank_for_fraction(percent / 100, size, size) == int(exact)


def test_fractions_that_leave_nothing() -> None:
    for fraction in (0.0, -0.5, 1.01, float("nan")):
        with pytest.raises(SecateurError, match="expected 0 < kept fraction <= 1, got"):
            rank_for_fraction(fraction, 8, 8)
    with pytest.raises(SecateurError, match=r"at least 1 / 64 .* got 0.01: its rank would be 0"):
        rank_for_fraction(0.01, 64, 128)
