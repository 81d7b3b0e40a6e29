"""Factor one matrix, or several of one input: statistics -> factors -> layer or dense matrix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    Cholesky,
    Factors,
    Svd,
    exact_svd,
    measure_error,
    randomised_svd,
    regression_weight,
    sparse_plus_low_rank_whitened,
    stack_rows,
    whiten,
    whitened_svd,
)
from secateur.mask import select_grouped
from secateur.models.sites import WeightSite
from secateur.recipe import FactorStage
from secateur.stages.factor_importance import Importance
from secateur.stages.factor_plan import SPARSE_PATTERN
from secateur.stages.factor_statistics import SiteMoments
from secateur.stages.factor_weights import OutputWeights, weights_of
from secateur.update import conjugate_gradient
from secateur_kernels.precision import wide_dtype

_OVERSAMPLING = 16
_LEAST_ZEROS = 1e-3
"""From this share of zeros on a matrix was pruned: weights that rounded to zero are far fewer."""
_ITERATIONS = 30


@dataclass(frozen=True, eq=False)
class FactorGroup:
    """Matrices [N_i, K] that are factored as one; a single one but for joint factoring."""

    sites: tuple[WeightSite, ...]

    @property
    def name(self) -> str:
        """That of the first matrix."""
        return self.sites[0].name

    @property
    def shape(self) -> tuple[int, int]:
        """(sum of N_i, K)."""
        return sum(site.shape[0] for site in self.sites), self.sites[0].shape[1]

    def weights(self) -> list[Tensor]:
        """Each matrix in fp32 or fp64."""
        found = [site.weight for site in self.sites]
        return [weight.to(wide_dtype(weight.dtype)) for weight in found]


@dataclass(frozen=True, eq=False)
class Factored:
    """What came out for one matrix."""

    factors: Factors
    sparse: Tensor | None = None
    """[N, K] with two of four kept, of sparse-plus-low-rank."""
    keep_mask: Tensor | None = None
    note: str = ""

    def dense(self) -> Tensor:
        """[N, K]."""
        product = self.factors.dense()
        return product if self.sparse is None else self.sparse + product


def factor_group(
    group: FactorGroup,
    rank: int,
    stage: FactorStage,
    moments: SiteMoments | None,
    num_samples: int,
    importance: Mapping[str, Importance] | None = None,
) -> list[Factored]:
    """Factors of every matrix of a group.

    Args:
        group: the matrices; not changed.
        rank: of the stack.
        stage: method and options.
        moments: of the shared input; None for methods that look at weights alone.
        num_samples: calibration samples, to average over.
        importance: by site name; None: the matrices of a stack count the same.

    Raises:
        SecateurError: weights or activations that are not finite, a Hessian beyond repair.
    """
    weight = stack_rows(group.weights())
    if stage.method in ("laser", "svd"):
        svd = _decompose(stage, rank)(weight)
        note = "" if stage.exact else _bound_note(weight, svd, rank)
        return _split(svd.factors(rank), group, OutputWeights(), note)
    assert moments is not None
    root = input_root(group, moments, num_samples, stage.damping)
    if stage.method == "sparse-plus-low-rank":
        keep, of = SPARSE_PATTERN
        select = partial(select_grouped, keep=keep, group=of)
        found = sparse_plus_low_rank_whitened(
            weight, rank, select, root, rounds=stage.rounds, decompose=_decompose(stage, rank)
        )
        note = _input_note(moments)
        return [Factored(found.factors, found.sparse, found.keep_mask, note)]
    weights = weights_of(group.sites, group.weights(), root, importance, stage.damping)
    target = _target(weights.stack(group.weights()), moments, num_samples, root)
    found_svd = whitened_svd(target, root, _decompose(stage, rank))
    note = _input_note(moments) or _damping_note(root.damping, stage)
    return _split(found_svd.factors(rank), group, weights, note)


def fit_dense(
    group: FactorGroup, stage: FactorStage, moments: SiteMoments, num_samples: int
) -> list[Tensor]:
    """What matrices that stay dense become, so as to give the dense outputs on the inputs as they
    are. A matrix that was pruned keeps its zeros.

    Returns:
        each [N, K] in its own dtype; none where no other inputs were watched.

    Raises:
        SecateurError: as `factor_group`.
    """
    if moments.cross is None or moments.statistics.num_tokens == 0:
        return []
    root = input_root(group, moments, num_samples, stage.damping)
    fitted = []
    for site, weight in zip(group.sites, group.weights(), strict=True):
        target = _target(weight, moments, num_samples, root)
        if float((weight == 0).float().mean()) >= _LEAST_ZEROS:
            hessian = moments.statistics.hessian(num_samples)
            target = _with_its_zeros(weight, target, hessian, stage.damping)
        fitted.append(target.to(site.parameter.dtype))
    return fitted


def _with_its_zeros(weight: Tensor, target: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """What comes near to the target [N, K] on the inputs with no other weights than there are.

    Never farther away than the weight itself, where the descent begins, by the damped Hessian.
    """
    hessian = hessian.to(weight.dtype)
    fitted = conjugate_gradient(
        target.to(weight.dtype),
        hessian,
        weight != 0,
        damping,
        iterations=_ITERATIONS,
        start=weight,
    )
    return torch.where(hessian.diagonal() == 0, weight, fitted)


def _target(weight: Tensor, moments: SiteMoments, num_samples: int, root: Cholesky) -> Tensor:
    """What is factored in place of a weight [N, K] where dense inputs were watched, too."""
    if moments.cross is None or moments.statistics.num_tokens == 0:
        return weight
    cross = weight.double() @ moments.cross.value(num_samples).double()
    return regression_weight(weight, moments.statistics.hessian(num_samples), cross, root)


def input_root(
    group: FactorGroup, moments: SiteMoments, num_samples: int, damping: float
) -> Cholesky:
    """The root of the input's Hessian; the identity where no token reached the matrices.

    Raises:
        SecateurError: activations that are not finite, or a Hessian beyond repair.
    """
    if moments.statistics.num_tokens == 0:
        weight = group.sites[0].weight
        eye = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
        return Cholesky(eye, 0.0)
    hessian = moments.statistics.hessian(num_samples)
    _require_finite(hessian, group)
    return whiten(hessian, damping)


def _input_note(moments: SiteMoments) -> str:
    if moments.statistics.num_tokens:
        return ""
    return "factored by weights alone: no calibration token was seen to reach it"


def _decompose(stage: FactorStage, rank: int) -> Callable[[Tensor], Svd]:
    if stage.exact:
        return exact_svd
    return lambda matrix: randomised_svd(matrix, rank, oversampling=_OVERSAMPLING)


def _bound_note(weight: Tensor, svd: Svd, rank: int) -> str:
    bound = measure_error(weight, svd, rank)
    return (
        f"randomised SVD: Frobenius error {bound.frobenius:.4g}, spectral <= {bound.spectral:.4g}"
    )


def _damping_note(used: float, stage: FactorStage) -> str:
    return "" if used == stage.damping else f"the Hessian took damping {used:g}"


def _split(
    factors: Factors, group: FactorGroup, weights: OutputWeights, note: str
) -> list[Factored]:
    rows = [site.shape[0] for site in group.sites]
    return [Factored(part, note=note) for part in weights.split(factors, rows)]


def _require_finite(hessian: Tensor, group: FactorGroup) -> None:
    if not bool(torch.isfinite(hessian).all()):
        raise SecateurError(
            f"activations that enter {group.name} hold NaN or Inf; the model (or its dtype) "
            "overflows on the calibration tokens"
        )


def groups_of(
    sites: Sequence[WeightSite], shared_inputs: dict[str, str], joint: bool
) -> list[FactorGroup]:
    """Single matrices, or those of one input together; experts always alone."""
    groups: dict[str, list[WeightSite]] = {}
    for site in sites:
        together = joint and not site.is_expert
        leader = shared_inputs.get(site.name, site.name) if together else site.name
        groups.setdefault(leader, []).append(site)
    return [FactorGroup(tuple(members)) for members in groups.values()]
