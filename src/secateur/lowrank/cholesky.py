"""Cholesky factors of what ought to be positive definite, with damping where it is not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError

# Damping tried in turn where what was asked for does not do, as fractions of the diagonal's mean.
_LADDER = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)


@dataclass(frozen=True, eq=False)
class Cholesky:
    """lower @ lower.T = matrix + damping * mean of its diagonal * identity."""

    lower: Tensor
    """float64 [K, K], lower triangular, finite."""
    damping: float
    """Fraction of the diagonal's mean that was really added; 0.0: the matrix itself."""


def damped_cholesky(matrix: Tensor, damping: float, what: str = "the Hessian") -> Cholesky:
    """Factor in float64, with more damping where it must be.

    Args:
        matrix: [K, K] symmetric, finite; only its lower triangle counts.
        damping: fraction of the mean of the diagonal that is added in any case.
        what: the matrix is called in errors.

    Raises:
        SecateurError: negative damping, no positive diagonal, or no rung of the ladder succeeds.
    """
    if damping < 0:
        raise SecateurError(f"expected damping of at least 0, got {damping}")
    wide = matrix.double()
    mean = float(wide.diagonal().mean())
    if mean <= 0:
        raise SecateurError(
            f"expected {what} to have a positive diagonal, got a mean of {mean:g}: "
            "no calibration token reached this layer"
        )
    for rung in (damping, *(rung for rung in _LADDER if rung > damping)):
        lower, failed = torch.linalg.cholesky_ex(_damped(wide, rung * mean))
        if not failed and bool(torch.isfinite(lower).all()):
            return Cholesky(lower, rung)
    raise SecateurError(
        f"{what} {list(matrix.shape)} is not positive definite even in float64 with damping "
        f"{max(damping, _LADDER[-1]):g}; use more calibration tokens or more damping"
    )


def _damped(matrix: Tensor, amount: float) -> Tensor:
    damped = matrix.clone()
    damped.diagonal().add_(amount)
    return damped


def solve(factor: Cholesky, right_hand_side: Tensor) -> Tensor:
    """right_hand_side [M, K] times the inverse of the damped matrix, by two triangular solves."""
    return torch.cholesky_solve(right_hand_side.T, factor.lower).T
