"""ADMM pruning (Boza, arXiv 2401.02938): mask and weights settle together, by turns of a ridge
regression and a projection onto the pattern.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.update.damping import damped_hessian
from secateur_kernels.errors import SecateurError

Select = Callable[[Tensor, float], Tensor]


def admm(
    weight: Tensor,
    hessian: Tensor,
    select: Select,
    *,
    damping: float = 0.1,
    rho: float = 1.0,
    iterations: int = 20,
    selecting: int = 15,
) -> tuple[Tensor, Tensor]:
    """Prune and update one matrix.

    Columns are scaled so that the Hessian's diagonal is one. Then, from U = 0, Z = 0 and W the
    dense weights, in turns: mask from |W + U|, Z = (W + U) under the mask, U += W - Z,
    W = (G W0 + rho (Z - U)) inverse(G + rho I).

    Args:
        weight: dense [N, K], fp32 or float64; not changed.
        hessian: [K, K] symmetric, proportional to X.T @ X over calibration tokens.
        select: from scores [N, K] and a share of the sparsity in (0, 1] to the keep mask [N, K].
            The share grows by the paper's cubic schedule, 1 - (1 - t / selecting)^3; a keep:group
            pattern may ignore it, and a constant mask makes this an update on a fixed support.
        damping: fraction of the (unit) diagonal that is added to it.
        rho: how hard both copies of the weights are pulled together.
        iterations: turns in all.
        selecting: turns that choose the mask anew; it is fixed afterwards.

    Returns:
        (weight [N, K] with exact zeros, keep_mask bool [N, K]).

    Raises:
        SecateurError: shapes that do not fit, fewer than one turn that selects or more than
            `iterations`, or a Hessian that is not finite or not positive definite.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise SecateurError(
            f"expected hessian [{columns}, {columns}] for weight {list(weight.shape)}, "
            f"got {list(hessian.shape)}"
        )
    if not 1 <= selecting <= iterations:
        raise SecateurError(
            f"expected 1 <= selecting <= iterations, got {selecting} and {iterations}"
        )
    norm = _unit_scale(hessian, weight.dtype)
    gram = damped_hessian(hessian.to(weight.dtype) / torch.outer(norm, norm), damping, weight.dtype)
    lower = _root(gram, rho)
    dense = (weight * norm).masked_fill(hessian.diagonal() == 0, 0.0)
    moments = dense @ gram
    current, dual = dense, torch.zeros_like(dense)
    mask = torch.ones_like(dense, dtype=torch.bool)
    for turn in range(1, iterations + 1):
        if turn <= selecting:
            mask = select((current + dual).abs(), 1.0 - (1.0 - turn / selecting) ** 3)
        sparse = (current + dual).masked_fill(~mask, 0.0)
        dual = dual + current - sparse
        current = torch.cholesky_solve((moments + rho * (sparse - dual)).T, lower).T
    return ((current + dual) / norm).masked_fill(~mask, 0.0), mask


def _unit_scale(hessian: Tensor, dtype: torch.dtype) -> Tensor:
    """Root of the diagonal, one where it is zero."""
    diagonal = hessian.diagonal().to(dtype)
    return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()


def _root(gram: Tensor, rho: float) -> Tensor:
    """Lower Cholesky factor of gram + rho I."""
    shifted = gram + rho * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed) or not bool(torch.isfinite(lower).all()):
        raise SecateurError(
            f"expected a finite, positive semidefinite Hessian [{len(gram)}, {len(gram)}], but it "
            f"does not factor with rho {rho:g}: check the activations, or use more damping"
        )
    return lower
