import pytest
import torch
from problems import normal

from secateur.errors import SecateurError
from secateur.lowrank.cholesky import damped_cholesky, solve


def definite(size: int) -> torch.Tensor:
    root = normal(size, 2 * size)
    return root @ root.T


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_factors_what_it_says(damping: float) -> None:
    matrix = definite(9)
    before = matrix.clone()
    root = damped_cholesky(matrix, damping)
    assert root.damping == damping
    damped = matrix + damping * matrix.diagonal().mean() * torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(root.lower @ root.lower.T, damped, rtol=1e-13, atol=1e-12)
    assert torch.equal(root.lower, root.lower.tril())
    rows = normal(4, 9)
    torch.testing.assert_close(
        solve(root, rows), torch.linalg.solve(damped, rows.T).T, rtol=1e-9, atol=1e-12
    )
    assert torch.equal(matrix, before)


def test_works_in_double_precision_whatever_comes() -> None:
    # 1 + 1e-10 is 1 in fp32, and the matrix then singular.
    matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-10]], dtype=torch.float64)
    assert damped_cholesky(matrix, 0.0).damping == 0.0
    assert damped_cholesky(definite(5).float(), 0.0).lower.dtype == torch.float64


@pytest.mark.parametrize(
    ("lowest", "rung"), [(-1e-13, 1e-12), (-1e-9, 1e-8), (-1e-7, 1e-6), (-1e-3, 1e-2)]
)
def test_the_first_rung_that_does(lowest: float, rung: float) -> None:
    values = torch.tensor([1.0, 1.0, 2.0, lowest], dtype=torch.float64)
    # The mean of the diagonal is 1 but for `lowest`, so that rungs are absolute here.
    assert damped_cholesky(values.diag(), 0.0).damping == rung


def test_ladder_starts_above_what_was_asked_for() -> None:
    values = torch.tensor([2.0, 2.0, 0.0, -1e-5], dtype=torch.float64)
    assert damped_cholesky(values.diag(), 1e-7).damping == 1e-4
    assert damped_cholesky(values.diag(), 1e-3).damping == 1e-3


def test_beyond_repair() -> None:
    values = torch.tensor([1.0, 1.0, -0.5], dtype=torch.float64)
    message = r"the Hessian \[3, 3\] is not positive definite even .* with damping 0.01; use more"
    with pytest.raises(SecateurError, match=message):
        damped_cholesky(values.diag(), 0.0)
    with pytest.raises(SecateurError, match=r"up.T @ up .* with damping 0.1"):
        damped_cholesky(values.diag(), 0.1, "up.T @ up")
    with pytest.raises(SecateurError, match="a mean of 0: no calibration token reached"):
        damped_cholesky(torch.zeros(3, 3), 0.0)
    with pytest.raises(SecateurError, match=r"damping of at least 0, got -0.1"):
        damped_cholesky(values.diag(), -0.1)
