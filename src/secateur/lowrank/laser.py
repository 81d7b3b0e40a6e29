"""LASER (Sharma, Ash and Misra, arXiv 2312.13558): one matrix cut to a low rank, nothing else.

An intervention is (matrix type, block, kept fraction); which matrix that is in a model, and what
it does to a task, is not decided here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from secateur.lowrank.factors import Factors
from secateur.lowrank.svd import Svd, rank_for_fraction
from secateur_kernels.errors import SecateurError

MatrixType = Literal["q", "k", "v", "qkv", "o", "mlp_in", "mlp_up", "mlp_out"]
"""`qkv` stands for matrices that hold all three. `mlp_in` is U_in of the paper: gate_proj where
there is a gate (so its code), and `mlp_up` is then the ungated half, which only the code knows.
`mlp_out` is U_out."""

FRACTIONS = (0.9, 0.8, 0.6, 0.2, 0.1, 0.05, 0.01)
"""The published grid of kept fractions (table 5)."""


@dataclass(frozen=True)
class Intervention:
    """(tau, l, rho) of the paper."""

    matrix: MatrixType
    block: int
    """Counted from 0."""
    fraction: float
    """Kept part of the full rank, in (0, 1]."""

    def __post_init__(self) -> None:
        if self.matrix not in get_args(MatrixType):
            raise SecateurError(
                f"expected a matrix type out of {', '.join(get_args(MatrixType))}, "
                f"got {self.matrix!r}"
            )
        if self.block < 0:
            raise SecateurError(f"expected a block of at least 0, got {self.block}")
        if not 0.0 < self.fraction <= 1.0:
            raise SecateurError(f"expected 0 < kept fraction <= 1, got {self.fraction}")


def kept(svd: Svd, fraction: float) -> Factors:
    """The components that the intervention keeps.

    Args:
        svd: of the weight: made once, cut at every fraction of a search.
        fraction: of the full rank, rounded down (see `rank_for_fraction`).

    Raises:
        SecateurError: the fraction is out of range, leaves no rank, or was not computed.
    """
    return svd.factors(rank_for_fraction(fraction, *svd.shape))


def discarded(svd: Svd, fraction: float) -> Factors:
    """The components that the intervention removes: answering with these shows what they store.

    Raises:
        SecateurError: as `kept`, or nothing is removed, or `svd` is not complete.
    """
    return svd.discarded(rank_for_fraction(fraction, *svd.shape))


def write_back(factors: Factors, weight: Tensor) -> Tensor:
    """The dense matrix as published: nothing is saved, but every tool can run it.

    Args:
        factors: multiplied in their own precision.
        weight: [N, K], the original; not changed.

    Returns:
        [N, K] in the dtype and on the device of `weight`.

    Raises:
        SecateurError: the factors are those of a matrix of another shape.
    """
    if factors.shape != tuple(weight.shape):
        raise SecateurError(
            f"expected factors of a weight {list(weight.shape)}, got {list(factors.shape)}"
        )
    return factors.dense().to(dtype=weight.dtype, device=weight.device)
