"""Attention rank and column mass: where attention says little (Inheritune, arXiv 2404.08634).

In deep blocks of trained models the attention matrices of all heads may come down to one column
that every token looks at. Such a block is called lazy: what its attention adds hardly depends on
who is asking.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import SecateurError

SHARE = 0.9
"""The paper's share, of squared singular values as of column mass."""

LAZY_THRESHOLD = 1.5
"""A mean rank below this is 1 when rounded."""


def approximate_rank(probabilities: Tensor, share: float = SHARE) -> Tensor:
    """Fewest singular values whose squares make up a share of the sum of all squares.

    k* = min k such that sum_{i<=k} sigma_i^2 >= share * sum_i sigma_i^2, with sigma descending.

    The sigma_i^2 are computed as the eigenvalues of A A^T in fp64. Squaring a matrix spoils its
    small singular values, but these are wanted squared and added to far larger ones: what is lost
    is within a few T eps of the sum, and symmetric eigenvalues cost a fraction of an SVD. Sums that
    miss the share by no more than that rounding reach it, so that exact ties (0.9 T of T equal
    values) fall as they would on paper.

    Args:
        probabilities: floating [..., T, T]; row t is what token t attends to.
        share: above 0 and at most 1.

    Returns:
        int64 [...], from 1 to T.

    Raises:
        SecateurError: another shape or dtype, values that are negative or not finite, a matrix of
            zeros, or a share out of range.
    """
    matrices = _checked(probabilities, share)
    squares = torch.linalg.eigvalsh(matrices @ matrices.mT).clamp_min(0)
    return _fewest(squares, share)


def column_mass(probabilities: Tensor, share: float = SHARE) -> Tensor:
    """Fewest columns that hold a share of all attention.

    The mass of column j is sum_t A[t, j], what token j is given by all tokens together; m* is the
    smallest number of columns whose masses, largest first, reach the share of their sum.

    Args, returns, raises: as `approximate_rank`.
    """
    return _fewest(_checked(probabilities, share).sum(-2), share)


class AttentionRank:
    """Running means of rank and column mass of one block's heads, over samples.

    Means over samples of any lengths; memory does not grow with their number.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._ranks: Tensor | None = None
        self._masses: Tensor | None = None
        self._num_samples = 0

    def add(self, probabilities: Tensor) -> None:
        """Add samples.

        Args:
            probabilities: floating [samples, heads, T, T], or [heads, T, T] for one sample.

        Raises:
            SecateurError: as `approximate_rank`, or another number of heads than before.
        """
        batch = probabilities.unsqueeze(0) if probabilities.ndim == 3 else probabilities
        if batch.ndim != 4:
            raise SecateurError(
                "expected attention probabilities [samples, heads, T, T] or [heads, T, T], got "
                f"{list(probabilities.shape)}"
            )
        num_heads = batch.shape[1]
        if self._ranks is not None and len(self._ranks) != num_heads:
            raise SecateurError(
                f"expected attention of {len(self._ranks)} heads as before, got {num_heads}"
            )
        ranks = approximate_rank(batch, self._share).sum(0).cpu()
        masses = column_mass(batch, self._share).sum(0).cpu()
        self._ranks = ranks if self._ranks is None else self._ranks + ranks
        self._masses = masses if self._masses is None else self._masses + masses
        self._num_samples += len(batch)

    def mean_ranks(self) -> tuple[float, ...]:
        """Mean approximate rank by head.

        Raises:
            SecateurError: no sample was added.
        """
        return self._means(self._ranks)

    def mean_masses(self) -> tuple[float, ...]:
        """Mean number of columns that hold the share of attention, by head; raises as above."""
        return self._means(self._masses)

    def _means(self, sums: Tensor | None) -> tuple[float, ...]:
        if sums is None or self._num_samples == 0:
            raise SecateurError("expected at least one sample for an attention rank, got none")
        return tuple((sums.double() / self._num_samples).tolist())


def lazy_blocks(
    mean_ranks: Sequence[Sequence[float]], threshold: float = LAZY_THRESHOLD
) -> tuple[int, ...]:
    """The blocks in which no head's mean rank reaches a threshold, ascending.

    The paper takes the maximum over heads, so that one head at work keeps its block, and calls
    blocks lazy where it has come down to 1. A mean over samples is 1 only if every sample is, so
    that the default threshold takes what is 1 when rounded. The paper gives no such number.

    Args:
        mean_ranks: by block, then by head.
        threshold: above 1, or nothing could be below it.

    Raises:
        SecateurError: a threshold that is not above 1, a block without heads, or a rank that is
            not finite.
    """
    if not 1 < threshold < math.inf:
        raise SecateurError(
            f"expected a threshold above 1, the smallest rank there is, got {threshold:g}"
        )
    for block, ranks in enumerate(mean_ranks):
        if not ranks or not all(map(math.isfinite, ranks)):
            raise SecateurError(
                f"expected finite ranks of one head or more by block, but block {block} has "
                f"{list(ranks)}"
            )
    return tuple(block for block, ranks in enumerate(mean_ranks) if max(ranks) < threshold)


def even_attention(length: int) -> Tensor:
    """Attention that looks at all tokens so far alike: fp64 [length, length].

    What rank and column mass are to be held against: it chooses nothing, and yet its rank is above
    1 from two tokens on.

    Raises:
        SecateurError: the length is below 1.
    """
    if length < 1:
        raise SecateurError(f"expected a length of at least 1, got {length}")
    rows = torch.ones(length, length, dtype=torch.float64).tril()
    return rows / rows.sum(-1, keepdim=True)


def _fewest(parts: Tensor, share: float) -> Tensor:
    """How many of the largest `parts` [..., n] it takes to reach a share of their sum."""
    sums = parts.sort(dim=-1, descending=True).values.cumsum(-1)
    rounding = 4 * parts.shape[-1] * torch.finfo(parts.dtype).eps
    wanted = (share - rounding) * sums[..., -1:]
    return (sums < wanted).sum(-1) + 1


def _checked(probabilities: Tensor, share: float) -> Tensor:
    """The matrices in fp64, if they can have a rank."""
    if not 0 < share <= 1:
        raise SecateurError(f"expected a share above 0 and at most 1, got {share:g}")
    shape = probabilities.shape
    if probabilities.ndim < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise SecateurError(f"expected attention probabilities [..., T, T], got {list(shape)}")
    if not probabilities.is_floating_point():
        raise SecateurError(f"expected floating attention probabilities, got {probabilities.dtype}")
    matrices = probabilities.detach().double()
    num_broken = int((~(torch.isfinite(matrices) & (matrices >= 0))).sum())
    if num_broken:
        raise SecateurError(
            f"expected attention probabilities of 0 or more, {num_broken} of {matrices.numel()} "
            "are negative or not finite"
        )
    if not bool((matrices.amax((-2, -1)) > 0).all()):
        raise SecateurError("expected attention probabilities, got a matrix of zeros")
    return matrices
