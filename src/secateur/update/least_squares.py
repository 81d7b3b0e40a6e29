"""Least squares on a fixed support: the kept weights that reproduce a layer's output best.

With H the damped Hessian, S the kept columns of a row and w the dense row, the minimum of
(v - w) H (v - w)^T over all v that are zero outside S is v_S = inverse(H_SS) (H w)_S.
"""

import torch
from torch import Tensor

from secateur.update.damping import damped_hessian, require_finite_hessian, with_enough_damping
from secateur_kernels.errors import SecateurError

_DEFAULT_BYTES = 256 << 20


def least_squares(
    weight: Tensor,
    hessian: Tensor,
    keep_mask: Tensor,
    damping: float = 0.01,
    max_bytes: int = _DEFAULT_BYTES,
) -> Tensor:
    """The best weights under a mask, exactly: one system of equations a row.

    Costs N * k^3 / 3 multiplications with k kept of each row; for wide layers use
    `conjugate_gradient`, which comes arbitrarily close.

    Args:
        weight: dense [N, K], fp32 or float64; not changed.
        hessian: [K, K] symmetric, proportional to X.T @ X over calibration tokens.
        keep_mask: bool [N, K]; rows may keep different numbers of weights.
        damping: fraction of the mean of the diagonal that is added to the diagonal: keeps weights
            near the dense ones where the tokens do not say.
        max_bytes: rows are solved together as far as their systems fit in this.

    Returns:
        [N, K] in the weight's dtype, exactly zero outside the mask and in columns whose input is
        always zero.

    Raises:
        SecateurError: shapes that do not fit, a Hessian that is not finite or, even with a
            thousand times the damping in float64, not positive definite.
    """
    _check(weight, hessian, keep_mask)
    keep = keep_mask & (hessian.diagonal() != 0)

    def attempt(damped: Tensor) -> Tensor | None:
        return _solve_rows(weight, damped, keep, max_bytes)

    solved, _, _ = with_enough_damping(attempt, hessian, damping, weight.dtype)
    return solved.to(weight.dtype)


def conjugate_gradient(
    weight: Tensor,
    hessian: Tensor,
    keep_mask: Tensor,
    damping: float = 0.01,
    iterations: int = 10,
    start: Tensor | None = None,
) -> Tensor:
    """The same minimum by preconditioned conjugate gradients, all rows at once.

    Every iteration is one product [N, K] x [K, K] and lowers every row's error; the diagonal of
    the Hessian is the preconditioner. ALPS (Meng et al., NeurIPS 2024) does ten.

    Args:
        weight: dense [N, K], fp32 or float64; not changed.
        hessian: [K, K] as for `least_squares`.
        keep_mask: bool [N, K].
        damping: as for `least_squares`.
        iterations: how many.
        start: [N, K] to start from, such as weights updated otherwise; by default the dense
            weights under the mask.

    Returns:
        [N, K] in the weight's dtype, exactly zero outside the mask and in columns whose input is
        always zero.

    Raises:
        SecateurError: shapes that do not fit, or a Hessian that is not finite.
    """
    _check(weight, hessian, keep_mask)
    keep = keep_mask & (hessian.diagonal() != 0)
    matrix = damped_hessian(hessian, damping, weight.dtype)
    scale = 1.0 / matrix.diagonal()
    solution = (weight if start is None else start.to(weight.dtype)).masked_fill(~keep, 0.0)
    residual = ((weight - solution) @ matrix).masked_fill(~keep, 0.0)
    direction = residual * scale
    slope = (residual * direction).sum(dim=1, keepdim=True)
    for _ in range(iterations):
        image = (direction @ matrix).masked_fill(~keep, 0.0)
        step = _ratio(slope, (direction * image).sum(dim=1, keepdim=True))
        solution += step * direction
        residual -= step * image
        ahead = residual * scale
        next_slope = (residual * ahead).sum(dim=1, keepdim=True)
        direction = ahead + _ratio(next_slope, slope) * direction
        slope = next_slope
    return solution


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    # A row that has arrived has neither slope nor direction: it stays.
    return torch.where(bottom > 0, top / bottom, torch.zeros_like(top))


def _solve_rows(weight: Tensor, matrix: Tensor, keep: Tensor, max_bytes: int) -> Tensor | None:
    """Row by row v_S; None if a system is not positive definite."""
    rows, columns = weight.shape
    widest = int(keep.sum(dim=1).max()) if rows else 0
    solved = torch.zeros(rows, columns, dtype=matrix.dtype, device=weight.device)
    if widest == 0:
        return solved
    moments = weight.to(matrix.dtype) @ matrix
    at_once = max(1, max_bytes // (2 * widest * widest * matrix.element_size()))
    for start in range(0, rows, at_once):
        chosen = slice(start, min(start + at_once, rows))
        # Kept columns first, in their order; the rest fills rows that keep fewer.
        order = keep[chosen].logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :widest]
        real = keep[chosen].gather(1, order)
        system = matrix[order.unsqueeze(2), order.unsqueeze(1)]
        system *= (real.unsqueeze(2) & real.unsqueeze(1)).to(system.dtype)
        system.diagonal(dim1=1, dim2=2).add_((~real).to(system.dtype))
        lower, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):
            return None
        wanted = moments[chosen].gather(1, order).masked_fill(~real, 0.0).unsqueeze(2)
        values = torch.cholesky_solve(wanted, lower).squeeze(2)
        if not bool(torch.isfinite(values).all()):
            return None
        solved[chosen] = solved[chosen].scatter(1, order, values.masked_fill(~real, 0.0))
    return solved


def _check(weight: Tensor, hessian: Tensor, keep_mask: Tensor) -> None:
    columns = weight.shape[1]
    if hessian.shape != (columns, columns) or keep_mask.shape != weight.shape:
        raise SecateurError(
            f"expected hessian [{columns}, {columns}] and keep_mask {list(weight.shape)} for "
            f"weight {list(weight.shape)}, got {list(hessian.shape)} and {list(keep_mask.shape)}"
        )
    require_finite_hessian(hessian)
