import pytest
import torch
from problems import inputs, normal
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import regression_weight, whiten, whitened_svd

DAMPING = 1e-6


def problem(
    rows: int, columns: int, seed: int = 0, num_tokens: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, inputs behind compressed blocks, dense targets)."""
    weight = normal(rows, columns, seed=seed)
    dense_inputs = inputs(num_tokens, columns, seed + 1)
    now = dense_inputs + 0.3 * inputs(num_tokens, columns, seed + 7)
    return weight, now, dense_inputs @ weight.T


@pytest.mark.parametrize("seed", range(5))
def test_whitened_svd_of_the_regression_is_the_best_pair(seed: int) -> None:
    weight, now, targets = problem(8, 10, seed)
    hessian = now.T @ now
    target = regression_weight(weight, hessian, targets.T @ now, whiten(hessian))
    expected = torch.linalg.lstsq(now, targets, driver="gelsd").solution.T
    torch.testing.assert_close(target, expected, rtol=1e-7, atol=1e-9)
    whitened = whitened_svd(target, whiten(hessian))
    least = float((targets - now @ target.T).square().sum())
    for rank in (1, 4, 7):
        error = float((targets - now @ whitened.factors(rank).dense().T).square().sum())
        assert error == pytest.approx(least + whitened.error(rank) ** 2)
        # Least squares for `up` with the original's `down` cannot do better.
        original = whitened_svd(weight, whiten(hessian)).factors(rank)
        seen = now @ original.down.T
        up = torch.linalg.lstsq(seen, targets, driver="gelsd").solution
        assert error < float((targets - seen @ up).square().sum()) * (1 + 1e-9)


def test_nothing_moves_where_nothing_changed() -> None:
    weight, tokens = normal(9, 12), inputs(100, 12)
    hessian = tokens.T @ tokens
    found = regression_weight(weight, hessian, weight @ hessian, whiten(hessian, DAMPING))
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-9)


def test_a_common_factor_of_the_moments_changes_nothing() -> None:
    weight, now, targets = problem(6, 9)
    hessian, cross = now.T @ now, targets.T @ now
    torch.testing.assert_close(
        regression_weight(weight, hessian, cross, whiten(hessian, DAMPING)),
        regression_weight(weight, hessian / 64, cross / 64, whiten(hessian / 64, DAMPING)),
    )


def test_directions_that_no_token_has_are_left_alone() -> None:
    weight, now, targets = problem(8, 10, num_tokens=3)
    hessian = now.T @ now
    unseen = torch.linalg.svd(hessian).Vh[3:]
    found = regression_weight(weight, hessian, targets.T @ now, whiten(hessian, DAMPING))
    change = found - weight
    assert float((change @ unseen.T).abs().max()) < 1e-6 * float(change.abs().max())


def test_moments_that_do_not_fit() -> None:
    weight, now, targets = problem(6, 9)
    hessian, cross = now.T @ now, targets.T @ now
    root = whiten(hessian, DAMPING)
    with pytest.raises(SecateurError, match=r"a Hessian \[9, 9\], got \[8, 8\]"):
        regression_weight(weight, hessian[:8, :8], cross, root)
    with pytest.raises(SecateurError, match=r"a cross-moment \[N, K\] of finite values"):
        regression_weight(weight, hessian, cross / 0.0, root)
    with pytest.raises(SecateurError, match=r"a Hessian \[9, 9\] of finite values"):
        regression_weight(weight, hessian / 0.0, cross, root)
    with pytest.raises(SecateurError, match=r"of a weight \[5, 9\], got \[6, 9\]"):
        regression_weight(weight[:5], hessian, cross, root)
    with pytest.raises(SecateurError, match=r"9 input features for a weight \[6, 9\], got 8"):
        regression_weight(weight, hessian, cross, whiten(hessian[:8, :8]))
