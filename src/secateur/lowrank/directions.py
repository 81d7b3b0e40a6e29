"""Weigh the directions of an output by the loss's gradients, before a matrix is factored.

With g = dL/dy the gradient of a token's loss at the output y, an error e of it moves the loss by
g . e: mean square e^T G e, with G the mean of g g^T. With inputs x of mean square H, independent of
the gradients, an error E of the weight costs ||L^T E S||_F^2, L L^T = G and S S^T = H: K-FAC's
Fisher (Martens and Grosse, arXiv 1503.05671). To second order half of that is the rise of the loss.
So L^T W is factored in the metric of S (`whitened`), and L^-T brings `up` back.

FWSVD (arXiv 2207.00112) weighs whole rows. GFWSVD (arXiv 2505.17974) takes both sides from
gradients of the weight, summed over a sample's tokens; taking them token by token, as here, keeps
G and H from losing rank (KFAC-SVD in "Advancing SVD-based LLM Compression via Layer-Wise Error
Model Search", ICML 2026).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.lowrank.cholesky import Cholesky, damped_cholesky
from secateur.lowrank.factors import Factors
from secateur.lowrank.matrix import check_matrix
from secateur_kernels.errors import SecateurError


def gradient_root(moment: Tensor, damping: float) -> Cholesky:
    """The root L of a mean square of gradients, by which directions of an output are weighed.

    Args:
        moment: [N, N], any positive multiple of the sum of g g^T over tokens. All zero: every
            direction counts the same.
        damping: fraction of the mean of the diagonal that is added in any case: a direction in
            which no gradient was seen on few tokens may still matter on others.

    Returns:
        The lower root in float64; the identity for no gradients.

    Raises:
        SecateurError: not square, not finite, or not positive definite with any damping.
    """
    what = "a mean square of gradients [N, N]"
    check_matrix(moment, what)
    if moment.shape[0] != moment.shape[1]:
        raise SecateurError(f"expected {what}, got {list(moment.shape)}")
    if not moment.any():
        return Cholesky(torch.eye(len(moment), dtype=torch.float64, device=moment.device), 0.0)
    return damped_cholesky(moment, damping, "the mean square of gradients")


def weigh_directions(weight: Tensor, root: Cholesky) -> Tensor:
    """L^T @ weight [N, K] in float64: its errors are the loss's.

    Raises:
        SecateurError: the gradients are those of other outputs.
    """
    _check_rows(weight.shape[0], root)
    return root.lower.T @ weight.double()


def unweigh_directions(parts: Sequence[Factors], roots: Sequence[Cholesky]) -> list[Factors]:
    """Factors of weights out of those of `weigh_directions(weight, root)`.

    Args:
        parts: in float64, of matrices that were stacked: one `down` for all.
        roots: of each.

    Returns:
        float64, again with one `down` for all; its rows have the norm of their columns of all `up`.

    Raises:
        SecateurError: the gradients are those of other outputs.
    """
    for part, root in zip(parts, roots, strict=True):
        _check_rows(part.shape[0], root)
    ups = [
        torch.linalg.solve_triangular(root.lower.T, part.up, upper=True)
        for part, root in zip(parts, roots, strict=True)
    ]
    down = parts[0].down
    of_up, of_down = torch.cat(ups).norm(dim=0), down.norm(dim=1)
    scale = torch.where((of_up > 0) & (of_down > 0), (of_down / of_up).sqrt(), 1.0)
    down = down / scale[:, None]
    return [Factors(up * scale, down) for up in ups]


def _check_rows(rows: int, root: Cholesky) -> None:
    if rows != len(root.lower):
        raise SecateurError(
            f"expected gradients of {rows} output features, got those of {len(root.lower)}"
        )
