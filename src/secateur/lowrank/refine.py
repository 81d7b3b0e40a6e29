"""Fit factors to what really comes in once the blocks before are compressed.

X are the inputs of the layer behind compressed blocks, Y the outputs that the dense model has for
the same tokens. The objective ||Y - X (up @ down).T||_F^2 needs no tokens, only three sums over
them. SVD-LLM refits `up` alone (arXiv 2403.07378, step 2); here `down` can follow, and
`regression_weight` gives the matrix whose whitened SVD is the best pair of factors at once.

All updates are damped towards the factors that came in: up' = up + R down^T (M + d)^-1 with the
residual moment R = cross - up down H and M = down H down^T. Whatever d >= 0, the objective falls by
at least tr(B (M + d)^-1 B^T), B = R down^T, and directions without data stay as they were.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.lowrank.cholesky import damped_cholesky, solve
from secateur.lowrank.factors import Factors
from secateur.lowrank.matrix import check_matrix, check_square
from secateur_kernels.errors import SecateurError


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over calibration tokens, all three times the same positive constant."""

    hessian: Tensor
    """[K, K]: X.T @ X of the inputs behind compressed blocks."""
    cross: Tensor
    """[N, K]: Y.T @ X, targets with those inputs. For Y = X_dense @ weight.T that is
    weight @ (X_dense.T @ X), so that layers of one input can share X_dense.T @ X."""
    target_energy: float = 0.0
    """||Y||_F^2. Only shifts the objective: 0.0 where the differences are enough."""

    def __post_init__(self) -> None:
        check_matrix(self.cross, "a cross-moment [N, K]")
        check_square(self.hessian, self.cross.shape[1])


@dataclass(frozen=True)
class Refinement:
    """Factors that fit better, and by how much."""

    factors: Factors
    """In the dtype of those that came in."""
    objective: tuple[float, ...]
    """Before, and after each update."""
    damping: float
    """The most that an update needed, as a fraction of its matrix's mean diagonal."""


def objective(factors: Factors, moments: Moments) -> float:
    """||Y - X (up @ down).T||_F^2, times the moments' constant, in float64.

    Raises:
        SecateurError: the factors are those of a matrix of another shape.
    """
    _check_shape(factors.shape, moments)
    up, down = factors.up.double(), factors.down.double()
    covered = (up.T @ moments.cross.double()) * down
    output = (up.T @ up) * (down @ moments.hessian.double() @ down.T)
    return moments.target_energy - 2.0 * float(covered.sum()) + float(output.sum())


def refine_up(factors: Factors, moments: Moments, damping: float = 1e-6) -> Refinement:
    """The least-squares `up` for this `down`, in closed form.

    Args:
        factors: of the compressed weight.
        moments: of this layer.
        damping: fraction of the mean of M's diagonal; the ladder of `cholesky` adds to it.

    Raises:
        SecateurError: shapes that do not fit, or moments that are singular beyond repair.
    """
    return _refine(factors, moments, damping, [_new_up])


def refine(
    factors: Factors, moments: Moments, rounds: int = 1, damping: float = 1e-6
) -> Refinement:
    """`up`, then `rounds` times `down` and `up` again, each the best for the other.

    Raises:
        SecateurError: as `refine_up`, or negative rounds.
    """
    if rounds < 0:
        raise SecateurError(f"expected at least 0 rounds, got {rounds}")
    return _refine(factors, moments, damping, [_new_up, *([_new_down, _new_up] * rounds)])


def regression_weight(weight: Tensor, moments: Moments, damping: float = 1e-6) -> Tensor:
    """The unconstrained least-squares weight: what to factor in place of `weight`.

    For any W', ||Y - X W'^T||^2 is a constant plus ||(W* - W') S||_F^2 with S the root of the
    Hessian: the whitened SVD of W* over the new inputs is the best pair of factors of each rank
    (reduced-rank regression; exact at damping 0).

    Args:
        weight: [N, K], the original, towards which the solution is damped.
        moments: of this layer.
        damping: fraction of the mean of the Hessian's diagonal. Few calibration tokens need more.

    Returns:
        float64 [N, K].

    Raises:
        SecateurError: as `refine_up`.
    """
    check_matrix(weight)
    _check_shape((weight.shape[0], weight.shape[1]), moments)
    wide, hessian = weight.double(), moments.hessian.double()
    root = damped_cholesky(hessian, damping)
    return wide + solve(root, moments.cross.double() - wide @ hessian)


_Update = Callable[[Factors, Moments, float], tuple[Factors, float]]


def _refine(
    factors: Factors, moments: Moments, damping: float, updates: list[_Update]
) -> Refinement:
    current = factors.to(torch.float64)
    objectives, most = [objective(current, moments)], 0.0
    for update in updates:
        current, used = update(current, moments, damping)
        objectives.append(objective(current, moments))
        most = max(most, used)
    return Refinement(current.to(factors.up.dtype), tuple(objectives), most)


def _new_up(factors: Factors, moments: Moments, damping: float) -> tuple[Factors, float]:
    down = factors.down
    seen = down @ moments.hessian.double()
    root = damped_cholesky(seen @ down.T, damping, "the Hessian between the factors")
    step = solve(root, moments.cross.double() @ down.T - factors.up @ (seen @ down.T))
    return replace(factors, up=factors.up + step), root.damping


def _new_down(factors: Factors, moments: Moments, damping: float) -> tuple[Factors, float]:
    up, hessian = factors.up, moments.hessian.double()
    outputs = damped_cholesky(up.T @ up, damping, "up.T @ up")
    inputs = damped_cholesky(hessian, damping)
    missing = up.T @ (moments.cross.double() - up @ (factors.down @ hessian))
    step = torch.cholesky_solve(solve(inputs, missing), outputs.lower)
    return replace(factors, down=factors.down + step), max(outputs.damping, inputs.damping)


def _check_shape(shape: tuple[int, int], moments: Moments) -> None:
    if shape != tuple(moments.cross.shape):
        raise SecateurError(
            f"expected moments of a weight {list(shape)}, got {list(moments.cross.shape)}"
        )
