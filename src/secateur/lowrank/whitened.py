"""Activation-aware factoring: the factors whose output, not whose matrix, is nearest.

SVD-LLM (arXiv 2403.07378): with S S^T = H the Hessian of the inputs, ||(W - W') S||_F is the error
of the outputs over the calibration tokens, so that the SVD of W S is cut instead of W's. Cut at
rank r it leaves exactly the tail of its singular values.

SVD-LLM stores up = U sqrt(s), down = sqrt(s) V^T S^-1. Since V^T = s^-1 U^T W S, that product is
U U^T W: the outputs are projected on their leading directions. It is computed so here: no inverse
and no division is left that a nearly singular Hessian could spoil, and inputs that calibration
never saw cannot blow up. The scale between a column of `up` and its row of `down` is free; it is
chosen so that both have the same norm.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.lowrank.cholesky import Cholesky, damped_cholesky
from secateur.lowrank.factors import Factors
from secateur.lowrank.matrix import check_matrix, check_square
from secateur.lowrank.svd import Svd, exact_svd
from secateur_kernels.errors import SecateurError


def whiten(hessian: Tensor, damping: float = 0.0) -> Cholesky:
    """The root S of a calibration Hessian that turns weight errors into output errors.

    Args:
        hessian: [K, K], any positive multiple of X.T @ X over the calibration tokens X.
        damping: fraction of the mean of the diagonal that is added in any case.

    Returns:
        The lower root in float64 and the damping that it took: 0.0 unless asked for or needed.

    Raises:
        SecateurError: not square, not finite, all zero, or not positive definite with any damping.
    """
    check_square(hessian, len(hessian))
    return damped_cholesky(hessian, damping)


@dataclass(frozen=True, eq=False)
class WhitenedSvd:
    """The SVD of weight @ S and what it takes to cut it to any rank."""

    svd: Svd
    """Of weight @ S, float64; `svd.values` are what `allocate_ranks` wants."""
    seen: Tensor
    """float64 [q, K]: svd.left.T @ weight."""

    def factors(self, rank: int) -> Factors:
        """The best factors of this rank for the calibration inputs, in float64.

        Raises:
            SecateurError: `rank` is below 1 or above what was computed.
        """
        self.svd.check_rank(rank)
        seen = self.seen[:rank]
        scale = torch.linalg.vector_norm(seen, dim=1).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        return Factors(self.svd.left[:, :rank] * scale, seen / scale[:, None])

    def error(self, rank: int) -> float:
        """||(weight - factors) S||_F: the tail of the singular values.

        With a Hessian c * X.T @ X that is sqrt(c) times the Frobenius norm of the outputs' error.

        Raises:
            SecateurError: not all singular values are here.
        """
        return self.svd.tail(rank)

    def relative_error(self, rank: int) -> float:
        """`error` over ||weight @ S||_F, the outputs' own norm; 0 for a weight without output."""
        whole = self.svd.tail(0)
        return self.error(rank) / whole if whole else 0.0


def whitened_svd(
    weight: Tensor, whitening: Cholesky, decompose: Callable[[Tensor], Svd] = exact_svd
) -> WhitenedSvd:
    """Decompose weight @ S, once for all ranks.

    Args:
        weight: [N, K] floating; layers that share their input may be stacked (see `joint`).
        whitening: of this layer's input, from `whiten`.
        decompose: `exact_svd`, or `randomised_svd` with its rank and options bound.

    Raises:
        SecateurError: the weight is not finite, or the Hessian is that of other inputs.
    """
    check_matrix(weight)
    check_whitening(weight, whitening)
    wide = weight.double()
    svd = decompose(wide @ whitening.lower)
    return WhitenedSvd(svd, svd.left.T @ wide)


def check_whitening(weight: Tensor, whitening: Cholesky) -> None:
    """Raise SecateurError unless the Hessian is that of inputs of this weight [N, K]."""
    if weight.shape[1] != len(whitening.lower):
        raise SecateurError(
            f"expected a Hessian of {weight.shape[1]} input features for a weight "
            f"{list(weight.shape)}, got {len(whitening.lower)}"
        )
