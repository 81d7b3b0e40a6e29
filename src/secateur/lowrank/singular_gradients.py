"""Which matrices are worth a LASER search, told from one backward pass.

The idea is that of arXiv 2510.20800: the gradient of the loss with respect to each singular value
says whether making it smaller helps. Components i > r taken out change the loss, to first order,
by -sum s_i * u_i^T G v_i with G the gradient with respect to the weight. Matrices are ranked here
by the lowest such change over the fractions of the grid. (The paper's own way to sum the
gradients was not at hand; this is the Taylor term that it rests on.) A large cut is far from first
order: take the ranking as a filter of what to measure, never as the measurement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.lowrank.laser import FRACTIONS
from secateur.lowrank.matrix import check_matrix
from secateur.lowrank.svd import Svd, rank_for_fraction
from secateur_kernels.errors import SecateurError


@dataclass(frozen=True, eq=False)
class SpectrumGradient:
    """What ranking keeps of a matrix, its SVD and its gradient."""

    shape: tuple[int, int]
    """(N, K) of the matrix."""
    values: Tensor
    """[min(N, K)], descending."""
    gradients: Tensor
    """[min(N, K)]: of the loss with respect to each of the values."""


@dataclass(frozen=True)
class Candidate:
    """The cut of one matrix that should lower the loss most."""

    name: str
    fraction: float
    rank: int
    predicted_change: float
    """Of the loss, to first order; negative is better."""


def singular_value_gradients(svd: Svd, gradient: Tensor) -> SpectrumGradient:
    """diag(U^T G V).

    Args:
        svd: of the weight, complete.
        gradient: [N, K], of the mean loss over a few samples with respect to the weight.

    Raises:
        SecateurError: the gradient is not finite or of another shape, or `svd` not complete.
    """
    check_matrix(gradient, f"a gradient {list(svd.shape)}")
    if tuple(gradient.shape) != svd.shape or not svd.is_complete:
        raise SecateurError(
            f"expected a gradient and all singular values of a weight {list(svd.shape)}, "
            f"got {list(gradient.shape)} and {len(svd.values)} values"
        )
    wide = gradient.to(dtype=svd.left.dtype, device=svd.left.device)
    gradients = ((svd.left.T @ wide) * svd.right).sum(dim=1)
    return SpectrumGradient(svd.shape, svd.values, gradients)


def predicted_changes(spectrum: SpectrumGradient) -> Tensor:
    """First-order change of the loss by keeping r components, for every r.

    Returns:
        float64 [min(N, K) + 1], index r; 0 at full rank.
    """
    terms = -(spectrum.values.double() * spectrum.gradients.double())
    tails = terms.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])


def rank_matrices(
    spectra: Mapping[str, SpectrumGradient], fractions: Sequence[float] = FRACTIONS
) -> list[Candidate]:
    """The most promising cut of each matrix, the most promising matrix first.

    Args:
        spectra: by matrix.
        fractions: that a search would try. Those that leave a matrix no rank are passed over.

    Returns:
        One for each matrix; equals in the mapping's order, larger fractions before smaller ones.

    Raises:
        SecateurError: no fractions, one out of range, or a matrix too small for all of them.
    """
    best = [_best_cut(name, spectrum, fractions) for name, spectrum in spectra.items()]
    return sorted(best, key=lambda candidate: candidate.predicted_change)


def _best_cut(name: str, spectrum: SpectrumGradient, fractions: Sequence[float]) -> Candidate:
    changes = predicted_changes(spectrum)
    possible = [f for f in fractions if not 0.0 < f * min(spectrum.shape) < 1.0]
    if not possible:
        raise SecateurError(
            f"expected a kept fraction that leaves {name} {list(spectrum.shape)} a rank, "
            f"got {list(fractions)}"
        )
    candidates = []
    for fraction in sorted(possible, reverse=True):
        rank = rank_for_fraction(fraction, *spectrum.shape)
        candidates.append(Candidate(name, fraction, rank, float(changes[rank])))
    return min(candidates, key=lambda candidate: candidate.predicted_change)
