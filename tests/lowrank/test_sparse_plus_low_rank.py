import pytest
import torch
from problems import inputs, normal, with_spectrum
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    SparsePlusLowRank,
    exact_svd,
    sparse_plus_low_rank,
    sparse_plus_low_rank_whitened,
    whiten,
    whitened_svd,
)
from secateur.lowrank.sparse_plus_low_rank import Select
from secateur.mask import select_grouped


def two_of_four(score: Tensor) -> Tensor:
    return select_grouped(score, 2, 4)


def mixture(rows: int = 24, columns: int = 32, seed: int = 0) -> Tensor:
    """A few strong directions on top of noise."""
    strong = with_spectrum(
        rows, columns, torch.tensor([12.0, 9.0, 7.0, 5.0], dtype=torch.float64), seed
    )
    return strong + normal(rows, columns, seed=seed + 5) * 0.3


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, Hessian, input norm)."""
    tokens = inputs(200, 32, seed)
    hessian = tokens.T @ tokens / 200
    return mixture(seed=seed), hessian, hessian.diagonal().sqrt()


def assert_two_of_four(result: SparsePlusLowRank) -> None:
    assert result.keep_mask.dtype == torch.bool
    assert (result.keep_mask.view(-1, 4).sum(dim=1) == 2).all()
    assert not result.sparse[~result.keep_mask].any()


@pytest.mark.parametrize("seed", range(4))
def test_alternation_lowers_the_error_and_keeps_the_pattern(seed: int) -> None:
    weight, _, norm = problem(seed)
    before = weight.clone()
    result = sparse_plus_low_rank(weight, 4, two_of_four, norm, rounds=30, decompose=exact_svd)
    assert_two_of_four(result)
    assert result.factors.rank == 4
    assert len(result.objective) == 31
    for earlier, later in zip(result.objective, result.objective[1:], strict=False):
        assert later <= earlier * (1 + 1e-12)
    assert result.objective[-1] < 0.95 * result.objective[0]
    # The last figure is the error of what is returned.
    error = float(((weight - result.dense()) * norm).square().sum())
    assert error == pytest.approx(result.objective[-1])
    assert torch.equal(weight, before)


def test_better_than_its_parts_alone() -> None:
    weight, _, norm = problem()
    scaled = weight * norm
    both = sparse_plus_low_rank(weight, 4, two_of_four, norm).objective[-1]
    mask = two_of_four(scaled.abs())
    sparse_alone = float(scaled.masked_fill(mask, 0.0).square().sum())
    low_rank_alone = exact_svd(scaled).tail(4) ** 2
    # One after the other, without going back (SLiM).
    in_turn = exact_svd(scaled.masked_fill(mask, 0.0)).tail(4) ** 2
    assert both < 0.9 * min(sparse_alone, low_rank_alone, in_turn)


def test_finds_a_sum_that_is_there() -> None:
    sparse = normal(24, 32, seed=3).masked_fill(~two_of_four(normal(24, 32, seed=4)), 0.0)
    weight = sparse + with_spectrum(24, 32, torch.tensor([40.0, 30.0], dtype=torch.float64))
    ones = torch.ones(32)
    result = sparse_plus_low_rank(weight, 2, two_of_four, ones, 400, decompose=exact_svd)
    assert result.objective[-1] < 1e-2 * float(sparse.square().sum())


def test_one_round_is_svd_then_selection_then_svd() -> None:
    weight, _, norm = problem()
    result = sparse_plus_low_rank(weight, 3, two_of_four, norm, 1, decompose=exact_svd)
    residual = weight * norm - exact_svd(weight * norm).factors(3).dense()
    mask = two_of_four(residual.abs())
    assert torch.equal(result.keep_mask, mask)
    sparse = residual.masked_fill(~mask, 0.0)
    torch.testing.assert_close(result.sparse, sparse / norm)
    expected = exact_svd(weight * norm - sparse).factors(3).dense() / norm
    torch.testing.assert_close(result.factors.dense(), expected)
    error = float((residual - sparse).square().sum())
    assert result.objective[0] == pytest.approx(error)


def test_randomised_is_the_default_repeats_itself_and_is_nearly_as_good() -> None:
    weight = mixture(96, 128)
    norm = inputs(200, 128).norm(dim=0)
    first, again = (sparse_plus_low_rank(weight, 8, two_of_four, norm) for _ in range(2))
    assert torch.equal(first.sparse, again.sparse)
    assert torch.equal(first.factors.up, again.factors.up)
    exact = sparse_plus_low_rank(weight, 8, two_of_four, norm, decompose=exact_svd)
    assert not torch.equal(first.factors.up, exact.factors.up)
    assert first.objective[-1] < 1.1 * exact.objective[-1]


def test_the_best_round_is_returned() -> None:
    weight, _, norm = problem()
    calls = []

    def select(score: Tensor) -> Tensor:
        calls.append(score)
        # From the third round on the worst are kept.
        return two_of_four(score if len(calls) < 3 else -score)

    result = sparse_plus_low_rank(weight, 4, select, norm, rounds=5, decompose=exact_svd)
    assert len(calls) == 5
    assert min(result.objective[2:5]) > max(result.objective[:2])
    assert result.objective[5] <= result.objective[1]
    best = sparse_plus_low_rank(weight, 4, two_of_four, norm, rounds=2, decompose=exact_svd)
    assert torch.equal(result.sparse, best.sparse)


def test_unseen_inputs_stay_finite() -> None:
    weight, _, norm = problem()
    norm = norm.clone()
    norm[[3, 4, 5, 6, 7]] = 0.0
    result = sparse_plus_low_rank(weight, 4, two_of_four, norm)
    assert_two_of_four(result)
    assert torch.isfinite(result.dense()).all()
    assert float(result.dense().abs().max()) < 3 * float(weight.abs().max())


def test_half_precision_weights() -> None:
    weight, _, norm = problem()
    result = sparse_plus_low_rank(weight.bfloat16(), 4, two_of_four, norm.float())
    assert result.sparse.dtype == result.factors.up.dtype == torch.float32
    assert_two_of_four(result)


def test_any_pattern_will_do() -> None:
    weight, _, norm = problem()
    result = sparse_plus_low_rank(weight, 4, lambda score: select_grouped(score, 1, 8), norm)
    assert (result.keep_mask.view(-1, 8).sum(dim=1) == 1).all()


def whitened_error(change: Tensor, hessian: Tensor) -> float:
    return float((change @ hessian * change).sum())


@pytest.mark.parametrize("fitting_steps", [0, 1, 10])
@pytest.mark.parametrize("seed", range(3))
def test_whitened_objective_never_rises(seed: int, fitting_steps: int) -> None:
    weight, hessian, _ = problem(seed)
    result = sparse_plus_low_rank_whitened(
        weight, 4, two_of_four, whiten(hessian), 8, fitting_steps, 3, decompose=exact_svd
    )
    assert_two_of_four(result)
    assert len(result.objective) == 10
    for earlier, later in zip(result.objective, result.objective[1:], strict=False):
        assert later <= earlier * (1 + 1e-12)
    error = whitened_error(weight - result.dense(), hessian)
    assert error == pytest.approx(result.objective[-1])


@pytest.mark.parametrize("seed", range(3))
def test_whitened_beats_scaled_on_the_outputs(seed: int) -> None:
    weight, hessian, norm = problem(seed)
    scaled = sparse_plus_low_rank(weight, 4, two_of_four, norm)
    refitted = whitened_svd(weight - scaled.sparse, whiten(hessian)).factors(4)
    whitened = sparse_plus_low_rank_whitened(weight, 4, two_of_four, whiten(hessian))
    errors = [
        whitened_error(weight - dense, hessian)
        for dense in (scaled.dense(), scaled.sparse + refitted.dense(), whitened.dense())
    ]
    assert errors[0] == pytest.approx(whitened.objective[0])
    assert errors[0] > errors[1] > errors[2]
    # Choosing from the residual alone, without what kept weights can make up for, ends above 0.45.
    assert errors[2] < 0.4 * errors[1]


def worse_after(calls: int, masks: list[Tensor]) -> Select:
    """Chooses the best for so many calls, and the worst from then on."""

    def select(score: Tensor) -> Tensor:
        masks.append(two_of_four(score if len(masks) < calls else -score))
        return masks[-1]

    return select


def test_a_worse_pattern_is_refused_and_values_are_the_least_squares_solution() -> None:
    weight, hessian, _ = problem()
    masks: list[Tensor] = []
    # More steps than kept weights a row: conjugate gradients are exact then.
    result = sparse_plus_low_rank_whitened(
        weight, 4, worse_after(1, masks), whiten(hessian), 1, 60, 1, decompose=exact_svd
    )
    assert len(masks) == 2
    assert torch.equal(result.keep_mask, masks[0])
    start = sparse_plus_low_rank(
        weight, 4, two_of_four, hessian.diagonal().sqrt(), 1, decompose=exact_svd
    )
    low_rank = whitened_svd(weight - start.sparse, whiten(hessian)).factors(4).dense()
    for row in range(24):
        kept = masks[0][row]
        right = (weight - low_rank)[row] @ hessian[:, kept]
        expected = torch.linalg.solve(hessian[kept][:, kept], right)
        torch.testing.assert_close(result.sparse[row, kept], expected, rtol=1e-6, atol=1e-8)


def test_dead_inputs_in_the_whitened_metric() -> None:
    weight, hessian, _ = problem()
    hessian[[3, 8]] = 0.0
    hessian[:, [3, 8]] = 0.0
    result = sparse_plus_low_rank_whitened(weight, 4, two_of_four, whiten(hessian))
    assert_two_of_four(result)
    assert torch.isfinite(result.dense()).all()
    assert float(result.dense().abs().max()) < 5 * float(weight.abs().max())


def test_bad_input() -> None:
    weight, hessian, norm = problem()
    whitening = whiten(hessian)
    for rank in (0, 25):
        with pytest.raises(SecateurError, match=f"a rank from 1 to 24 .* got {rank}"):
            sparse_plus_low_rank(weight, rank, two_of_four, norm)
        with pytest.raises(SecateurError, match=f"a rank from 1 to 24 .* got {rank}"):
            sparse_plus_low_rank_whitened(weight, rank, two_of_four, whitening)
    with pytest.raises(SecateurError, match="at least 1 round, got 0"):
        sparse_plus_low_rank(weight, 4, two_of_four, norm, rounds=0)
    with pytest.raises(SecateurError, match="at least 1 round, got 0"):
        sparse_plus_low_rank_whitened(weight, 4, two_of_four, whitening, rounds=0)
    with pytest.raises(SecateurError, match=r"input norms \[32\], got \[31\]"):
        sparse_plus_low_rank(weight, 4, two_of_four, norm[:31])
    for bad in (norm * 0, -norm, norm / 0.0):
        with pytest.raises(SecateurError, match="finite input norms of at least 0, not all"):
            sparse_plus_low_rank(weight, 4, two_of_four, bad)
    with pytest.raises(SecateurError, match=r"a keep mask bool \[24, 32\] .* got torch.float64"):
        sparse_plus_low_rank(weight, 4, lambda score: score, norm)
    with pytest.raises(SecateurError, match=r"a keep mask bool .* got torch.bool \[24\]"):
        sparse_plus_low_rank_whitened(weight, 4, lambda score: score[:, 0] > 0, whitening)
    with pytest.raises(SecateurError, match="divisible by the group of 4"):
        sparse_plus_low_rank(weight[:, :30], 4, two_of_four, norm[:30])
    with pytest.raises(SecateurError, match="32 input features"):
        sparse_plus_low_rank_whitened(weight, 4, two_of_four, whiten(hessian[:8, :8]))
    weight[0, 0] = float("nan")
    with pytest.raises(SecateurError, match="finite values, got NaN or Inf in 1 places"):
        sparse_plus_low_rank(weight, 4, two_of_four, norm)
    with pytest.raises(SecateurError, match="finite values, got NaN or Inf in 1 places"):
        sparse_plus_low_rank_whitened(weight, 4, two_of_four, whitening)
