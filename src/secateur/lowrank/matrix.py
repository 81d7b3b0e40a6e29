"""What every low-rank algorithm asks of its matrices, and the precision that it works in."""

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import wide_dtype


def check_matrix(matrix: Tensor, what: str = "a weight [N, K]") -> None:
    """Check that a matrix can be decomposed.

    Raises:
        SecateurError: not a floating matrix with at least one row and column, or not finite.
    """
    if matrix.ndim != 2 or matrix.numel() == 0 or not matrix.is_floating_point():
        raise SecateurError(
            f"expected {what} of floating values, got {matrix.dtype} {list(matrix.shape)}"
        )
    bad = int((~torch.isfinite(matrix)).sum())
    if bad:
        raise SecateurError(f"expected {what} of finite values, got NaN or Inf in {bad} places")


def check_square(hessian: Tensor, size: int) -> None:
    """Check that a Hessian is finite and belongs to inputs of `size` features.

    Raises:
        SecateurError: what was expected and what came.
    """
    check_matrix(hessian, f"a Hessian [{size}, {size}]")
    if list(hessian.shape) != [size, size]:
        raise SecateurError(f"expected a Hessian [{size}, {size}], got {list(hessian.shape)}")


def working_dtype(matrix: Tensor) -> torch.dtype:
    """float64 for float64, else float32.

    A decomposition in fp32 is off by about 1e-7 of the largest singular value; what is stored in
    16 bits afterwards is off by 4e-3 of every value, so that float64 would be time for nothing.
    """
    return wide_dtype(matrix.dtype)
