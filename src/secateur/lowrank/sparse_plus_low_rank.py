"""weight ~ sparse + up @ down by alternation, after OATS (arXiv 2409.13652).

The error is measured over inputs scaled by their norms, ||(W - S - L) diag(d)||_F. Given L, the
best S of a pattern is the residual W - L where it is largest; given S, the best L is the truncated
SVD of the residual: neither half step can make the error larger, but for the randomised SVD, so
that the best round is what is returned. OATS takes 80 exact SVDs a matrix; randomised ones end in
another place, about as good.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.lowrank.factors import Factors, check_rank
from secateur.lowrank.matrix import check_matrix, working_dtype
from secateur.lowrank.randomised import randomised_svd
from secateur.lowrank.svd import Svd
from secateur_kernels.errors import SecateurError

Select = Callable[[Tensor], Tensor]
"""From a score [N, K], higher = keep, to a keep mask bool [N, K]: 2:4 or any other pattern."""

# Inputs that calibration never saw count this much of the loudest one: they are fitted last, and
# nothing is divided by zero.
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True, eq=False)
class SparsePlusLowRank:
    """weight [N, K] ~ sparse + factors.dense()."""

    sparse: Tensor
    """[N, K] in the dtype of `factors`, exactly zero where not kept."""
    keep_mask: Tensor
    """bool [N, K]: just what `select` chose."""
    factors: Factors
    objective: tuple[float, ...]
    """Squared error in the metric of the search, after each round."""

    def dense(self) -> Tensor:
        """The sum [N, K], in the factors' dtype."""
        return self.sparse + self.factors.dense()


def sparse_plus_low_rank(
    weight: Tensor,
    rank: int,
    select: Select,
    input_norm: Tensor,
    rounds: int = 40,
    decompose: Callable[[Tensor], Svd] | None = None,
) -> SparsePlusLowRank:
    """Alternate between the low-rank and the sparse part, low rank first, as published.

    Args:
        weight: [N, K] floating.
        rank: of the low-rank part.
        select: chooses what the sparse part keeps, from |residual| * input norm.
        input_norm: [K], not negative: square root of the diagonal of X.T @ X, times any constant.
        rounds: each a truncated SVD and a selection; then the low-rank part is fitted once more.
        decompose: how to get at least `rank` singular triplets; randomised with 16 more and 1
            power iteration by default.

    Returns:
        The best round, in float64 for a float64 weight, else in float32.

    Raises:
        SecateurError: not finite, norms that do not fit, a rank that is not there, or no rounds.
    """
    check_matrix(weight)
    check_rank(rank, *weight.shape)
    check_rounds(rounds)
    wide = weight.to(working_dtype(weight))
    scale = _scale(input_norm, wide)
    if decompose is None:
        decompose = default_decompose(rank)
    target = wide * scale
    sparse = torch.zeros_like(target)
    best: tuple[float, Tensor, Tensor] | None = None
    objectives = []
    for _ in range(rounds):
        low_rank = decompose(target - sparse).factors(rank).dense()
        residual = target - low_rank
        keep_mask = select_checked(select, residual.abs())
        sparse = residual.masked_fill(~keep_mask, 0.0)
        objectives.append(float((residual - sparse).square().sum()))
        if best is None or objectives[-1] < best[0]:
            best = (objectives[-1], sparse, keep_mask)
    assert best is not None
    _, sparse, keep_mask = best
    factors = decompose(target - sparse).factors(rank)
    return SparsePlusLowRank(
        sparse=sparse / scale,
        keep_mask=keep_mask,
        factors=Factors(factors.up, factors.down / scale),
        objective=(*objectives, float((target - sparse - factors.dense()).square().sum())),
    )


def default_decompose(rank: int) -> Callable[[Tensor], Svd]:
    """Randomised SVD to `rank`, the same sketch every time."""
    return lambda matrix: randomised_svd(matrix, rank, oversampling=16, power_iterations=1)


def check_rounds(rounds: int) -> None:
    """Raise SecateurError unless there is at least one round."""
    if rounds < 1:
        raise SecateurError(f"expected at least 1 round, got {rounds}")


def select_checked(select: Select, score: Tensor) -> Tensor:
    """The keep mask for a score.

    Raises:
        SecateurError: `select` returned anything but a bool mask of the score's shape.
    """
    keep_mask = select(score)
    if keep_mask.dtype != torch.bool or keep_mask.shape != score.shape:
        raise SecateurError(
            f"expected a keep mask bool {list(score.shape)} from `select`, "
            f"got {keep_mask.dtype} {list(keep_mask.shape)}"
        )
    return keep_mask


def _scale(input_norm: Tensor, weight: Tensor) -> Tensor:
    columns = weight.shape[1]
    if list(input_norm.shape) != [columns]:
        raise SecateurError(f"expected input norms [{columns}], got {list(input_norm.shape)}")
    scale = input_norm.to(dtype=weight.dtype, device=weight.device)
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()) or not bool(scale.any()):
        raise SecateurError("expected finite input norms of at least 0, not all of them 0")
    return scale.clamp(min=float(scale.max()) * _SMALLEST_SCALE)
