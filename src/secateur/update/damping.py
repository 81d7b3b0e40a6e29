"""Hessians that can be factored: what is added to the diagonal, and more where it must be."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError

Value = TypeVar("Value")

# Tried in turn: (dtype, factor on the damping asked for).
_LADDER = (
    (torch.float32, 1.0),
    (torch.float64, 1.0),
    (torch.float64, 10.0),
    (torch.float64, 100.0),
    (torch.float64, 1000.0),
)


def damped_hessian(hessian: Tensor, damping: float, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype`, ones in place of a zero diagonal, damping * mean of that added to it."""
    matrix = hessian.to(dtype, copy=True)
    diagonal = matrix.diagonal()
    diagonal += (diagonal == 0).to(dtype)
    diagonal += damping * diagonal.mean()
    return matrix


def with_enough_damping(
    attempt: Callable[[Tensor], Value | None], hessian: Tensor, damping: float, least: torch.dtype
) -> tuple[Value, float, torch.dtype]:
    """Try a Hessian with more precision and more damping until an attempt succeeds.

    Args:
        attempt: given a `damped_hessian`; None where it is not positive definite.
        hessian: [K, K] symmetric.
        damping: fraction of the diagonal's mean that is added at first.
        least: precision to begin with.

    Returns:
        (what the attempt gave, the damping and the precision that it took).

    Raises:
        SecateurError: the Hessian is not finite, or no attempt succeeds.
    """
    require_finite_hessian(hessian)
    for dtype, factor in _LADDER:
        if dtype.itemsize >= least.itemsize:
            found = attempt(damped_hessian(hessian, damping * factor, dtype))
            if found is not None:
                return found, damping * factor, dtype
    raise SecateurError(
        f"the Hessian [{len(hessian)}, {len(hessian)}] is not positive definite even in float64 "
        f"with damping {damping * _LADDER[-1][1]:g}; use more calibration tokens or more damping"
    )


def require_finite_hessian(hessian: Tensor) -> None:
    """Raise SecateurError if a Hessian is not finite."""
    if not bool(torch.isfinite(hessian).all()):
        raise SecateurError("expected a finite Hessian, got NaN or Inf: check the activations")
