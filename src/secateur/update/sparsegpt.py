"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): prune column by column, and let the columns
to the right make up for each column's loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.update.damping import with_enough_damping


@dataclass(frozen=True)
class HessianFactor:
    """What SparseGPT needs of a Hessian; layers that share their input share it."""

    upper: Tensor
    """[K, K], upper triangular U with inverse(H + damping) = U.T @ U."""
    dead: Tensor
    """bool [K]: inputs that are always zero."""
    damping: float
    """Fraction of the diagonal's mean that was really added."""
    dtype: torch.dtype
    """Precision in which the factorisation succeeded."""


def factor_hessian(hessian: Tensor, damping: float = 0.01) -> HessianFactor:
    """Invert and factor a Hessian, with more precision and more damping where it must be.

    Args:
        hessian: [K, K] symmetric, proportional to X.T @ X over calibration tokens; fp32, or
            float64 to keep everything in float64.
        damping: fraction of the mean of the diagonal that is added to the diagonal.

    Returns:
        The factor, in the Hessian's dtype.

    Raises:
        SecateurError: the Hessian is not finite, or no rung of the ladder succeeds.
    """
    upper, used, dtype = with_enough_damping(_inverse_upper, hessian, damping, hessian.dtype)
    return HessianFactor(upper.to(hessian.dtype), hessian.diagonal() == 0, used, dtype)


def _inverse_upper(damped: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not bool(torch.isfinite(upper).all()) else upper


def sparsegpt(
    weight: Tensor,
    factor: HessianFactor,
    select: Callable[[Tensor], Tensor],
    select_columns: int,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Prune and update one matrix.

    Args:
        weight: [N, K] in the factor's dtype; not changed.
        factor: of the Hessian of this layer's input.
        select: from scores [N, c] of the next c columns, computed from weights as already
            updated, to their keep mask [N, c].
        select_columns: c: the group of a keep:group pattern, the block size, or K to choose all
            columns from the weights before any update.
        block_size: columns updated together; a speed choice only. Rounded up to a multiple of
            `select_columns` unless that is K.

    Returns:
        (weight [N, K] with zeros, keep_mask bool [N, K]).
    """
    rows, columns = weight.shape
    if select_columns < columns:
        block_size = -(-block_size // select_columns) * select_columns
    weight = weight.masked_fill(factor.dead, 0.0)
    keep_mask = torch.empty((rows, columns), dtype=torch.bool, device=weight.device)
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        errors = torch.empty((rows, end - start), dtype=weight.dtype, device=weight.device)
        for column in range(start, end):
            if column % select_columns == 0:
                chosen = slice(column, min(column + select_columns, columns))
                score = (weight[:, chosen] / factor.upper.diagonal()[chosen]) ** 2
                keep_mask[:, chosen] = select(score)
            errors[:, column - start] = _prune_column(
                weight[:, column:end], keep_mask[:, column], factor.upper[column, column:end]
            )
        weight[:, end:] -= errors @ factor.upper[start:end, end:]
    return weight, keep_mask


def _prune_column(ahead: Tensor, keep: Tensor, upper_row: Tensor) -> Tensor:
    """Zero the first column of `ahead` where not kept; the rest of it makes up for the loss."""
    column = ahead[:, 0]
    error = column.masked_fill(keep, 0.0) / upper_row[0]
    ahead[:, 1:] -= torch.outer(error, upper_row[1:])
    column.masked_fill_(~keep, 0.0)
    return error
