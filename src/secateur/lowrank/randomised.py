"""Randomised SVD with an error that is measured, not hoped for.

Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 53, 2011).
"""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor

from secateur.lowrank.factors import check_rank
from secateur.lowrank.matrix import check_matrix, working_dtype
from secateur.lowrank.svd import Svd
from secateur_kernels.errors import SecateurError

_PROBES = 10
_PROBE_FACTOR = 10.0
# The probes must not be the sketch's own vectors, on which the error is zero by construction. The
# generator looks at the lower 32 bits of a seed only.
_PROBE_SEED = 0x5EED_BA5E


@dataclass(frozen=True)
class ErrorBound:
    """How far a truncated decomposition is from its matrix."""

    frobenius: float
    """Frobenius norm of the difference: measured, exact but for rounding."""
    spectral: float
    """At least the spectral norm of the difference, but for `failure_probability`."""
    failure_probability: float


def randomised_svd(
    weight: Tensor,
    rank: int,
    oversampling: int = 16,
    power_iterations: int = 2,
    seed: int = 0,
) -> Svd:
    """The leading singular triplets by randomised subspace iteration (algorithms 4.4 and 5.1).

    The same seed gives the same sketch on every device.

    Args:
        weight: [N, K] floating; computed in float64 for float64, else in float32.
        rank: that will be cut to, 1 to min(N, K).
        oversampling: triplets beyond `rank` that are computed to make those up to it good.
        power_iterations: more for a slowly falling spectrum; 2 * power_iterations + 2 products
            with the weight.
        seed: of the sketch.

    Returns:
        min(rank + oversampling, N, K) triplets. `values @ right` is exactly what `left` sees of
        the weight, left.T @ weight.

    Raises:
        SecateurError: not finite, a rank that is not there, or a negative option.
    """
    check_matrix(weight)
    check_rank(rank, *weight.shape)
    if oversampling < 0 or power_iterations < 0:
        raise SecateurError(
            "expected oversampling and power iterations of at least 0, "
            f"got {oversampling} and {power_iterations}"
        )
    wide = weight.to(working_dtype(weight))
    width = min(rank + oversampling, *weight.shape)
    basis = torch.linalg.qr(wide @ _gaussian(wide, width, seed)).Q
    for _ in range(power_iterations):
        # Orthonormal after every product, or rounding would eat the small singular values.
        other_side = torch.linalg.qr(wide.T @ basis).Q
        basis = torch.linalg.qr(wide @ other_side).Q
    turn, values, right = torch.linalg.svd(basis.T @ wide, full_matrices=False)
    return Svd(basis @ turn, values, right)


def measure_error(weight: Tensor, svd: Svd, rank: int, seed: int = 0) -> ErrorBound:
    """The error of `svd.factors(rank)`, whatever made the decomposition.

    With Q = svd.left and all its q triplets, A - A_rank = (I - Q Q^T) A + Q (Q^T A - its leading
    part); both terms are orthogonal, so that squares add. The spectral norm of the first is below
    10 * sqrt(2 / pi) times the longest of 10 images of Gaussian vectors, but for a probability of
    10^-10 (Lemma 4.1 with alpha = r = 10); that of the second is the first value left out.

    Args:
        weight: [N, K], the matrix that was decomposed.
        svd: of `randomised_svd` or `exact_svd`.
        rank: 1 to the number of triplets.
        seed: of the probes; any, also the sketch's.

    Raises:
        SecateurError: the shapes differ, or the rank is not there.
    """
    if tuple(weight.shape) != svd.shape:
        raise SecateurError(
            f"expected the weight {list(svd.shape)} that was decomposed, got {list(weight.shape)}"
        )
    svd.check_rank(rank)
    wide = weight.to(svd.left.dtype)
    outside = wide - svd.left @ (svd.values[:, None] * svd.right)
    cut = svd.values[rank:]
    probes = _gaussian(wide, _PROBES, seed + _PROBE_SEED)
    longest = float(torch.linalg.vector_norm(outside @ probes, dim=0).max())
    inside = float(cut[0]) if len(cut) else 0.0
    return ErrorBound(
        frobenius=sqrt(float(outside.square().sum()) + float(cut.square().sum())),
        spectral=sqrt((_PROBE_FACTOR * sqrt(2 / pi) * longest) ** 2 + inside**2),
        failure_probability=_PROBE_FACTOR**-_PROBES,
    )


def _gaussian(like: Tensor, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape[1], width, dtype=like.dtype, generator=generator).to(like.device)
