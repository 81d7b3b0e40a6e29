"""weight ~ sparse + up @ down by alternation, in the metric of the whole calibration Hessian.

The error is that of the outputs, ||(W - S - L) R||_F with R the Hessian's root. Given S, the best L
is a whitened SVD. Given L, the best S of a pattern is a hard problem: the pattern is chosen from
the kept weights after one step of descent, scaled by the Hessian's diagonal, that all weights may
take, and its values are fitted by conjugate gradients, all rows at once, so that kept weights make
up for removed ones. A pattern that turns out worse than the old one is refused: no round makes the
error larger. The start is the alternation of `sparse_plus_low_rank`, without which the search ends
in worse places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.lowrank.cholesky import Cholesky
from secateur.lowrank.factors import check_rank
from secateur.lowrank.matrix import check_matrix
from secateur.lowrank.sparse_plus_low_rank import (
    Select,
    SparsePlusLowRank,
    check_rounds,
    default_decompose,
    select_checked,
    sparse_plus_low_rank,
)
from secateur.lowrank.svd import Svd
from secateur.lowrank.whitened import check_whitening, whitened_svd


def sparse_plus_low_rank_whitened(
    weight: Tensor,
    rank: int,
    select: Select,
    whitening: Cholesky,
    rounds: int = 10,
    fitting_steps: int = 10,
    scaled_rounds: int = 40,
    decompose: Callable[[Tensor], Svd] | None = None,
) -> SparsePlusLowRank:
    """Alternate between the low-rank part and the pattern and values of the sparse part.

    Args:
        weight: [N, K] floating.
        rank: of the low-rank part.
        select: chooses what the sparse part keeps.
        whitening: of the layer's input, from `whiten`.
        rounds: each a whitened SVD, a selection and two fits.
        fitting_steps: of conjugate gradients, each a product [N, K] with [K, K].
        scaled_rounds: of `sparse_plus_low_rank`, to start from.
        decompose: how to get at least `rank` singular triplets; randomised with 16 more and 1
            power iteration by default.

    Returns:
        The last round, in float64. The objective is that of the start, of each round and of the
        result; it never rises but for the error of a randomised SVD.

    Raises:
        SecateurError: not finite, a Hessian of other inputs, a rank that is not there, no rounds.
    """
    check_matrix(weight)
    check_rank(rank, *weight.shape)
    check_whitening(weight, whitening)
    check_rounds(rounds)
    if decompose is None:
        decompose = default_decompose(rank)
    wide, hessian = weight.double(), whitening.lower @ whitening.lower.T
    input_norm = hessian.diagonal().sqrt()
    start = sparse_plus_low_rank(wide, rank, select, input_norm, scaled_rounds, decompose)
    sparse, keep_mask = start.sparse, start.keep_mask
    objectives = [_error(wide - start.dense(), hessian)]
    for _ in range(rounds):
        factors = whitened_svd(wide - sparse, whitening, decompose).factors(rank)
        residual = wide - factors.dense()
        sparse = _fitted(sparse, residual, keep_mask, hessian, fitting_steps)
        step = ((residual - sparse) @ hessian) / hessian.diagonal()
        new_mask = select_checked(select, (sparse + step).abs() * input_norm)
        new = (sparse + step).masked_fill(~new_mask, 0.0)
        new = _fitted(new, residual, new_mask, hessian, fitting_steps)
        if _error(residual - new, hessian) <= _error(residual - sparse, hessian):
            sparse, keep_mask = new, new_mask
        objectives.append(_error(residual - sparse, hessian))
    factors = whitened_svd(wide - sparse, whitening, decompose).factors(rank)
    objectives.append(_error(wide - factors.dense() - sparse, hessian))
    return SparsePlusLowRank(sparse, keep_mask, factors, tuple(objectives))


def _error(change: Tensor, hessian: Tensor) -> float:
    return float((change @ hessian * change).sum())


def _fitted(
    start: Tensor, target: Tensor, keep_mask: Tensor, hessian: Tensor, steps: int
) -> Tensor:
    """Values on the mask that bring (target - values) H (target - values)^T down, row by row.

    Conjugate gradients, preconditioned by the Hessian's diagonal: every step lowers the error.
    """
    diagonal = hessian.diagonal()
    values = start
    residual = ((target - values) @ hessian).masked_fill(~keep_mask, 0.0)
    direction = residual / diagonal
    slope = (residual * direction).sum(dim=1, keepdim=True)
    for _ in range(steps):
        image = (direction @ hessian).masked_fill(~keep_mask, 0.0)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        length = torch.where(curvature > 0, slope / curvature, 0.0)
        values = values + length * direction
        residual = residual - length * image
        towards = residual / diagonal
        next_slope = (residual * towards).sum(dim=1, keepdim=True)
        direction = towards + torch.where(slope > 0, next_slope / slope, 0.0) * direction
        slope = next_slope
    return values
