import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SHAPES, inputs, normal
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    Factors,
    Moments,
    exact_svd,
    objective,
    refine,
    refine_up,
    regression_weight,
    truncate,
    whiten,
    whitened_svd,
)


def problem(
    rows: int, columns: int, seed: int = 0, num_tokens: int = 100
) -> tuple[Tensor, Tensor, Tensor, Moments]:
    """(weight, inputs behind compressed blocks, dense targets, moments)."""
    weight = normal(rows, columns, seed=seed)
    dense_inputs = inputs(num_tokens, columns, seed + 1)
    now = dense_inputs + 0.3 * inputs(num_tokens, columns, seed + 7)
    targets = dense_inputs @ weight.T
    return (
        weight,
        now,
        targets,
        Moments(now.T @ now, targets.T @ now, float(targets.square().sum())),
    )


def squared_error(factors: Factors, now: Tensor, targets: Tensor) -> float:
    return float((targets - now @ factors.dense().T).square().sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_objective_is_the_squared_error(shape: tuple[int, int]) -> None:
    weight, now, targets, moments = problem(*shape)
    factors = truncate(weight, max(1, min(shape) // 2))
    measured = squared_error(factors, now, targets)
    assert objective(factors, moments) == pytest.approx(measured, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_up_is_the_least_squares_solution(shape: tuple[int, int]) -> None:
    weight, now, targets, moments = problem(*shape)
    factors = truncate(weight, max(1, min(shape) // 2))
    refined = refine_up(factors, moments, damping=0.0)
    assert torch.equal(refined.factors.down, factors.down)
    expected = torch.linalg.lstsq(now @ factors.down.T, targets, driver="gelsd").solution.T
    torch.testing.assert_close(refined.factors.up, expected, rtol=1e-8, atol=1e-10)
    assert refined.damping == 0.0
    before, after = refined.objective
    assert before == pytest.approx(squared_error(factors, now, targets))
    assert after == pytest.approx(squared_error(refined.factors, now, targets))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    num_tokens=st.integers(1, 30),
    damping=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 100.0]),
    rounds=st.integers(0, 3),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_objective_never_rises(
    rows: int,
    columns: int,
    num_tokens: int,
    damping: float,
    rounds: int,
    seed: int,
    data: st.DataObject,
) -> None:
    weight, now, targets, moments = problem(rows, columns, seed, num_tokens)
    rank = data.draw(st.integers(1, min(rows, columns)))
    factors = whitened_svd(weight, whiten(moments.hessian)).factors(rank)
    refined = refine(factors, moments, rounds, damping)
    assert len(refined.objective) == 2 + 2 * rounds
    # The objective is a difference of numbers as large as the targets and outputs.
    size = moments.target_energy + squared_error(factors, now, torch.zeros_like(targets))
    for before, after in zip(refined.objective, refined.objective[1:], strict=False):
        assert after <= before + 1e-11 * size
    assert refined.objective[-1] == pytest.approx(
        squared_error(refined.factors, now, targets), abs=1e-9 * size
    )


def test_alternation_goes_on_improving_towards_the_best_pair() -> None:
    weight, _, _, moments = problem(12, 16)
    factors = truncate(weight, 4)
    errors = refine(factors, moments, rounds=30, damping=0.0).objective
    best = objective(
        whitened_svd(regression_weight(weight, moments, 0.0), whiten(moments.hessian)).factors(4),
        moments,
    )
    assert errors[1] < 0.9 * errors[0]
    assert errors[3] < 0.99 * errors[1]
    assert best <= errors[-1] * (1 + 1e-9)
    assert errors[-1] < 1.01 * best


@pytest.mark.parametrize("seed", range(5))
def test_whitened_svd_of_the_regression_is_the_best_pair(seed: int) -> None:
    weight, now, targets, moments = problem(8, 10, seed)
    target = regression_weight(weight, moments, damping=0.0)
    expected = torch.linalg.lstsq(now, targets, driver="gelsd").solution.T
    torch.testing.assert_close(target, expected, rtol=1e-7, atol=1e-9)
    whitened = whitened_svd(target, whiten(moments.hessian))
    least = float((targets - now @ target.T).square().sum())
    for rank in (1, 4, 7):
        pair = whitened.factors(rank)
        error = squared_error(pair, now, targets)
        assert error == pytest.approx(least + whitened.error(rank) ** 2)
        original = whitened_svd(weight, whiten(moments.hessian)).factors(rank)
        assert error < refine(original, moments, rounds=2).objective[-1] * (1 + 1e-9)
        assert refine(pair, moments).objective[-1] == pytest.approx(error)


def test_nothing_moves_where_nothing_changed() -> None:
    # Inputs as they were, and factors that are already the best.
    weight = normal(9, 12)
    tokens = inputs(100, 12)
    hessian = tokens.T @ tokens
    moments = Moments(hessian, weight @ hessian, float((tokens @ weight.T).square().sum()))
    torch.testing.assert_close(regression_weight(weight, moments), weight, rtol=0, atol=1e-9)
    factors = whitened_svd(weight, whiten(hessian)).factors(4)
    refined = refine(factors, moments, rounds=2)
    torch.testing.assert_close(refined.factors.dense(), factors.dense(), rtol=0, atol=1e-8)


def test_a_common_factor_of_the_moments_changes_nothing() -> None:
    weight, _, _, moments = problem(6, 9)
    scaled = Moments(moments.hessian / 64, moments.cross / 64)
    factors = truncate(weight, 3)
    one, other = (refine(factors, m, rounds=1).factors for m in (moments, scaled))
    torch.testing.assert_close(one.dense(), other.dense(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        regression_weight(weight, moments), regression_weight(weight, scaled)
    )


def test_singular_hessians_are_damped_towards_what_came_in() -> None:
    weight, _, _, moments = problem(8, 10, num_tokens=3)
    factors = truncate(weight, 5)
    refined = refine(factors, moments, rounds=1, damping=0.0)
    assert 0.0 < refined.damping <= 1e-8
    assert refined.objective[-1] <= refined.objective[0]
    # Heavy damping holds the factors where they were.
    held = refine_up(factors, moments, damping=1e12)
    assert held.damping == 1e12
    torch.testing.assert_close(held.factors.up, factors.up, rtol=0, atol=1e-9)
    # Directions that no token has are left alone.
    unseen = torch.linalg.svd(moments.hessian).Vh[3:]
    change = regression_weight(weight, moments) - weight
    assert float((change @ unseen.T).abs().max()) < 1e-6 * float(change.abs().max())


def test_a_dead_component_of_up_is_no_trouble() -> None:
    _, _, _, moments = problem(6, 9)
    factors = Factors(
        normal(6, 3) * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), normal(3, 9)
    )
    refined = refine(factors, moments, rounds=1, damping=0.0)
    assert refined.objective[-1] < refined.objective[0]
    assert torch.isfinite(refined.factors.dense()).all()


def test_dtype_stays_and_inputs_are_not_changed() -> None:
    weight, _, _, moments = problem(6, 9)
    factors = exact_svd(weight.float()).factors(3)
    up = factors.up.clone()
    refined = refine(factors, Moments(moments.hessian.float(), moments.cross.float()))
    assert refined.factors.up.dtype == refined.factors.down.dtype == torch.float32
    assert torch.equal(factors.up, up)
    exact = refine(exact_svd(weight).factors(3), moments)
    torch.testing.assert_close(
        refined.factors.dense().double(), exact.factors.dense(), rtol=0, atol=1e-2
    )


def test_moments_that_do_not_fit() -> None:
    weight, _, _, moments = problem(6, 9)
    with pytest.raises(SecateurError, match=r"a Hessian \[8, 8\], got \[9, 9\]"):
        Moments(moments.hessian, moments.cross[:, :8])
    with pytest.raises(SecateurError, match=r"a cross-moment \[N, K\] of finite values"):
        Moments(moments.hessian, moments.cross / 0.0)
    with pytest.raises(SecateurError, match=r"a Hessian \[9, 9\] of finite values"):
        Moments(moments.hessian / 0.0, moments.cross)
    factors = truncate(normal(5, 9), 2)
    for call in (objective, refine, refine_up):
        with pytest.raises(SecateurError, match=r"moments of a weight \[5, 9\], got \[6, 9\]"):
            call(factors, moments)
    with pytest.raises(SecateurError, match=r"moments of a weight \[5, 9\], got \[6, 9\]"):
        regression_weight(factors.dense(), moments)
    with pytest.raises(SecateurError, match="at least 0 rounds, got -1"):
        refine(truncate(weight, 2), moments, rounds=-1)
    nothing = Moments(torch.zeros(9, 9), torch.zeros(6, 9))
    with pytest.raises(SecateurError, match=r"between the factors .* no calibration token reached"):
        refine_up(truncate(weight, 2), nothing)
