"""Weighed directions against float64 references by eigenvectors and by single tokens."""

import pytest
import torch
from problems import SHAPES, inputs, normal, problem
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    Cholesky,
    Factors,
    gradient_root,
    split_rows,
    stack_rows,
    unweigh_directions,
    weigh_directions,
    whiten,
    whitened_svd,
)


def moment(rows: int, seed: int = 0, num_tokens: int = 150) -> Tensor:
    """Mean square of correlated gradients of very different sizes."""
    gradients = inputs(num_tokens, rows, seed + 20)
    return gradients.T @ gradients / num_tokens


def cost(error: Tensor, gradients: Tensor, hessian: Tensor) -> float:
    """||L^T E S||_F^2 without any root."""
    return float((error.T @ gradients @ error @ hessian).trace())


def weighed_factors(weight: Tensor, hessian: Tensor, root: Cholesky, rank: int) -> Factors:
    found = whitened_svd(weigh_directions(weight, root), whiten(hessian))
    [factors] = unweigh_directions([found.factors(rank)], [root])
    return factors


def symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.sqrt() @ vectors.T
    return root


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_the_best_in_the_loss_metric(shape: tuple[int, int]) -> None:
    """The reference cuts the SVD between symmetric roots and multiplies by their inverses."""
    weight, _, hessian = problem(*shape)
    gradients = moment(shape[0])
    left, right = symmetric_root(gradients), symmetric_root(hessian)
    found = whitened_svd(weigh_directions(weight, gradient_root(gradients, 0.0)), whiten(hessian))
    whole = cost(weight, gradients, hessian)
    for rank in range(1, min(shape) + 1):
        up, values, down = torch.linalg.svd(left @ weight @ right, full_matrices=False)
        cut = up[:, :rank] * values[:rank] @ down[:rank]
        expected = torch.linalg.solve(left, torch.linalg.solve(right, cut, left=False))
        factors = weighed_factors(weight, hessian, gradient_root(gradients, 0.0), rank)
        torch.testing.assert_close(factors.dense(), expected, rtol=1e-7, atol=1e-8)
        measured = cost(weight - factors.dense(), gradients, hessian)
        assert measured == pytest.approx(found.error(rank) ** 2, rel=1e-7, abs=1e-12 * whole)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_matrix(shape: tuple[int, int]) -> None:
    weight, _, hessian = problem(*shape)
    root = gradient_root(moment(shape[0]), 0.01)
    dense = weighed_factors(weight, hessian, root, min(shape)).dense()
    torch.testing.assert_close(dense, weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_change_of_the_factors_is_better(seed: int) -> None:
    weight, _, hessian = problem(8, 10, seed)
    gradients = moment(8, seed)
    factors = weighed_factors(weight, hessian, gradient_root(gradients, 0.0), 3)
    least = cost(weight - factors.dense(), gradients, hessian)
    for step in (1e-1, 1e-3):
        for turn in range(5):
            up = factors.up + step * normal(8, 3, seed=seed + 50 + turn)
            down = factors.down + step * normal(3, 10, seed=seed + 60 + turn)
            assert cost(weight - up @ down, gradients, hessian) > least
    plain = whitened_svd(weight, whiten(hessian)).factors(3).dense()
    assert cost(weight - plain, gradients, hessian) > 1.02 * least


def test_an_error_costs_what_it_moves_the_loss_by() -> None:
    """Where gradients and inputs are independent, the cost is the mean of (g . e)^2."""
    weight, tokens, _ = problem(6, 9, num_tokens=40)
    gradients = normal(30, 6, seed=5) * torch.logspace(-1, 1, 6, dtype=torch.float64)
    error = (
        weight
        - weighed_factors(
            weight, tokens.T @ tokens, gradient_root(gradients.T @ gradients, 0.0), 2
        ).dense()
    )
    # Every gradient with every input: independent in the sample itself.
    moved = gradients @ error @ tokens.T
    expected = cost(error, gradients.T @ gradients / 30, tokens.T @ tokens / 40)
    assert float(moved.square().mean()) == pytest.approx(expected)


def test_without_gradients_factors_are_those_of_the_whitened_svd() -> None:
    weight, _, hessian = problem(7, 9)
    plain = whitened_svd(weight, whiten(hessian)).factors(3).dense()
    for same in (torch.zeros(7, 7), 3.0 * torch.eye(7)):
        root = gradient_root(same, 0.01)
        torch.testing.assert_close(weighed_factors(weight, hessian, root, 3).dense(), plain)


def test_much_damping_weighs_all_directions_alike() -> None:
    weight, _, hessian = problem(7, 9)
    plain = whitened_svd(weight, whiten(hessian)).factors(3).dense()
    found = weighed_factors(weight, hessian, gradient_root(moment(7), 1e9), 3).dense()
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)


def test_asked_for_damping_is_added() -> None:
    gradients = moment(6)
    root = gradient_root(gradients, 0.1)
    damped = gradients + 0.1 * gradients.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    assert root.damping == 0.1
    torch.testing.assert_close(root.lower @ root.lower.T, damped)


def test_scale_of_the_gradients_changes_nothing_but_the_cost() -> None:
    weight, _, hessian = problem(6, 9)
    one, other = (
        weighed_factors(weight, hessian, gradient_root(moment(6) * c, 0.0), 3) for c in (1.0, 1e-8)
    )
    torch.testing.assert_close(one.dense(), other.dense())
    # Neither factor grows with them: fp16 holds both.
    torch.testing.assert_close(one.up.norm(dim=0), one.down.norm(dim=1))
    torch.testing.assert_close(other.up.norm(dim=0), other.down.norm(dim=1))


def test_fewer_gradients_than_features_take_damping() -> None:
    weight, _, hessian = problem(10, 12)
    gradients = moment(10, num_tokens=3)
    root = gradient_root(gradients, 0.01)
    assert root.damping == 0.01
    found = whitened_svd(weigh_directions(weight, root), whiten(hessian))
    # Three directions carry all but the damping: 7 of 10 times 0.01 of the mean.
    assert found.error(3) < 0.1 * found.error(0)
    factors = weighed_factors(weight, hessian, root, 3)
    assert cost(weight - factors.dense(), gradients, hessian) < 0.01 * cost(
        weight, gradients, hessian
    )


def test_a_stack_shares_down_and_each_keeps_its_own_gradients() -> None:
    tokens = inputs(200, 12)
    hessian = tokens.T @ tokens
    weights = [normal(8, 12, seed=1), normal(4, 12, seed=2)]
    moments = [moment(8), 9.0 * moment(4, 1)]
    roots = [gradient_root(one, 0.0) for one in moments]
    stack = stack_rows([weigh_directions(w, r) for w, r in zip(weights, roots, strict=True)])
    found = whitened_svd(stack, whiten(hessian))
    parts = unweigh_directions(split_rows(found.factors(5), [8, 4]), roots)
    assert parts[0].down is parts[1].down
    torch.testing.assert_close(
        torch.cat([part.up for part in parts]).norm(dim=0), parts[0].down.norm(dim=1)
    )
    costs = [
        cost(w - part.dense(), one, hessian)
        for w, part, one in zip(weights, parts, moments, strict=True)
    ]
    assert sum(costs) == pytest.approx(found.error(5) ** 2)


def test_a_weight_without_output() -> None:
    _, _, hessian = problem(4, 6)
    factors = weighed_factors(torch.zeros(4, 6), hessian, gradient_root(moment(4), 0.01), 2)
    assert not factors.dense().any()
    assert torch.isfinite(factors.up).all()


def test_bad_input() -> None:
    weight, _, hessian = problem(6, 9)
    root = gradient_root(moment(6), 0.01)
    with pytest.raises(SecateurError, match=r"mean square of gradients \[N, N\], got \[6, 5\]"):
        gradient_root(moment(6)[:, :5], 0.01)
    bad = moment(6)
    bad[0, 0] = float("inf")
    with pytest.raises(SecateurError, match="finite values, got NaN or Inf in 1 places"):
        gradient_root(bad, 0.01)
    with pytest.raises(SecateurError, match="damping of at least 0, got -1"):
        gradient_root(moment(6), -1.0)
    with pytest.raises(SecateurError, match=r"mean square of gradients \[6, 6\] is not positive"):
        gradient_root(moment(6) - moment(6).diagonal().mean() / 2 * torch.eye(6), 0.0)
    with pytest.raises(SecateurError, match="gradients of 5 output features, got those of 6"):
        weigh_directions(weight[:5], root)
    factors = whitened_svd(weight[:5], whiten(hessian)).factors(2)
    with pytest.raises(SecateurError, match="gradients of 5 output features, got those of 6"):
        unweigh_directions([factors], [root])
