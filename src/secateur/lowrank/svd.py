"""The singular value decomposition and what is cut from it."""

from dataclasses import dataclass
from math import floor
from typing import Literal

import torch
from torch import Tensor

from secateur.lowrank.factors import Factors, check_rank
from secateur.lowrank.matrix import check_matrix, working_dtype
from secateur_kernels.errors import SecateurError

Split = Literal["balanced", "up"]
"""Where singular values go: their square roots into both factors, or all into `up`."""


@dataclass(frozen=True, eq=False)
class Svd:
    """matrix [N, K] = left @ diag(values) @ right, all or the leading q triplets of it."""

    left: Tensor
    """[N, q], orthonormal columns."""
    values: Tensor
    """[q], descending, none negative."""
    right: Tensor
    """[q, K], orthonormal rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def is_complete(self) -> bool:
        """Whether all min(N, K) triplets are here."""
        return len(self.values) == min(self.shape)

    def factors(self, rank: int, split: Split = "balanced") -> Factors:
        """The leading `rank` triplets: the nearest matrix of that rank (Eckart and Young).

        Raises:
            SecateurError: `rank` is below 1 or above what was computed.
        """
        self.check_rank(rank)
        return self._slice(0, rank, split)

    def discarded(self, rank: int, split: Split = "balanced") -> Factors:
        """What `factors(rank)` leaves out: both add up to the matrix.

        Raises:
            SecateurError: nothing is left out, or not all triplets are here.
        """
        check_rank(rank, *self.shape)
        if not self.is_complete:
            raise SecateurError(
                f"expected all {min(self.shape)} singular values to tell what rank {rank} "
                f"discards, got {len(self.values)}: use the exact decomposition"
            )
        if rank == len(self.values):
            raise SecateurError(f"expected a rank below the full rank {rank}: it discards nothing")
        return self._slice(rank, len(self.values), split)

    def tail(self, rank: int) -> float:
        """Frobenius norm of what `factors(rank)` leaves out; 0 at full rank.

        Raises:
            SecateurError: not all triplets are here (see `randomised.measure_error` then).
        """
        if not self.is_complete:
            raise SecateurError(
                f"expected all {min(self.shape)} singular values to sum their tail, "
                f"got {len(self.values)}"
            )
        return float(torch.linalg.vector_norm(self.values[rank:]))

    def check_rank(self, rank: int) -> None:
        """Check that a rank exists and was computed.

        Raises:
            SecateurError: it is below 1 or above the number of triplets.
        """
        check_rank(rank, *self.shape)
        if rank > len(self.values):
            raise SecateurError(
                f"expected a rank of at most the {len(self.values)} singular values that were "
                f"computed, got {rank}"
            )

    def _slice(self, start: int, stop: int, split: Split) -> Factors:
        left, right = self.left[:, start:stop], self.right[start:stop]
        values = self.values[start:stop]
        if split == "up":
            return Factors(left * values, right.contiguous())
        root = values.sqrt()
        return Factors(left * root, root[:, None] * right)


def exact_svd(weight: Tensor) -> Svd:
    """All min(N, K) singular triplets, by LAPACK or cuSOLVER.

    Args:
        weight: [N, K] floating. float64 is decomposed in float64, everything else in float32.

    Raises:
        SecateurError: not a floating matrix, or not finite.
    """
    check_matrix(weight)
    left, values, right = torch.linalg.svd(weight.to(working_dtype(weight)), full_matrices=False)
    return Svd(left, values, right)


def truncate(weight: Tensor, rank: int, split: Split = "balanced") -> Factors:
    """The nearest matrix of a rank, in the Frobenius and the spectral norm, as factors.

    Args:
        weight: [N, K] floating.
        rank: 1 to min(N, K).
        split: where the singular values go.

    Returns:
        Factors in float64 for a float64 weight, else in float32.

    Raises:
        SecateurError: not finite, or a rank that is not there.
    """
    check_matrix(weight)
    check_rank(rank, *weight.shape)
    return exact_svd(weight).factors(rank, split)


def rank_for_fraction(fraction: float, rows: int, columns: int) -> int:
    """LASER's rank (arXiv 2312.13558): floor(fraction * min(rows, columns)).

    Args:
        fraction: in (0, 1], the part of the full rank that is kept.
        rows: N.
        columns: K.

    Raises:
        SecateurError: the fraction is out of range, or so small that no rank is left.
    """
    if not 0.0 < fraction <= 1.0:
        raise SecateurError(f"expected 0 < kept fraction <= 1, got {fraction}")
    # The small factor keeps 0.7 * 10, which is 7 but for rounding, from becoming 6.
    rank = min(floor(fraction * min(rows, columns) * (1 + 1e-15)), min(rows, columns))
    if rank < 1:
        raise SecateurError(
            f"expected a kept fraction of at least 1 / {min(rows, columns)} for a weight "
            f"[{rows}, {columns}], got {fraction}: its rank would be 0"
        )
    return rank
