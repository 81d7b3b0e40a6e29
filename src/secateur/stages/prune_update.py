"""Weights that make up for pruned ones: settled together with the mask, or anew on a given one."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from secateur.calibration.statistics import InputStatistics
from secateur.recipe import PruneStage, Sparsity
from secateur.recipe.prune_stage import Update
from secateur.stages.prune_score import selector
from secateur.update import (
    HessianFactor,
    admm,
    conjugate_gradient,
    factor_hessian,
    least_squares,
    sparsegpt,
)


class SharedHessians:
    """Hessians of a block's inputs; the factor of one is made once for all that share the input."""

    def __init__(
        self, damping: float, num_samples: int, users: Iterable[InputStatistics | None]
    ) -> None:
        """`users` are the statistics of every matrix that will be pruned."""
        self._damping = damping
        self._num_samples = num_samples
        self._users_left = Counter(id(statistics) for statistics in users)
        self._factors: dict[int, HessianFactor] = {}

    def hessian(self, statistics: InputStatistics) -> Tensor:
        """fp32 [K, K]."""
        return statistics.hessian(self._num_samples)

    def factor(self, statistics: InputStatistics) -> HessianFactor:
        """The factor for a layer with these statistics."""
        if id(statistics) not in self._factors:
            self._factors[id(statistics)] = factor_hessian(self.hessian(statistics), self._damping)
        return self._factors[id(statistics)]

    def done(self, statistics: InputStatistics | None) -> None:
        """One of its users was pruned; after the last one the factor is forgotten.

        A block with many experts has as many inputs, whose factors would not fit together.
        """
        self._users_left[id(statistics)] -= 1
        if not self._users_left[id(statistics)]:
            self._factors.pop(id(statistics), None)


def settle(
    dense: Tensor,
    sparsity: Sparsity,
    stage: PruneStage,
    statistics: InputStatistics,
    hessians: SharedHessians,
) -> tuple[Tensor, Tensor, str]:
    """Mask and weights at once, by the method's own update.

    Returns:
        (weights [N, K] with zeros, keep_mask bool [N, K], note).
    """
    if stage.own_update() == "admm":

        def select(score: Tensor, share: float) -> Tensor:
            return selector(sparsity, stage, share)(score)

        return *admm(dense, hessians.hessian(statistics), select), ""
    factor = hessians.factor(statistics)
    columns = _columns_at_once(sparsity, stage, dense.shape[1])
    weights, mask = sparsegpt(
        dense.to(factor.upper.dtype), factor, selector(sparsity, stage), columns, stage.block_size
    )
    return weights, mask, _factor_note(factor, stage)


def update_on_mask(
    dense: Tensor,
    keep_mask: Tensor,
    update: Update,
    stage: PruneStage,
    statistics: InputStatistics,
    hessians: SharedHessians,
) -> tuple[Tensor, str]:
    """The kept weights anew, from the dense ones.

    Args:
        dense: [N, K], fp32 or float64.
        keep_mask: bool [N, K].
        update: by what; `none` keeps them as they are.
        stage: options.
        statistics: of the inputs, with their Hessian.
        hessians: of the block.

    Returns:
        (weights [N, K] with zeros, note).
    """
    if update == "none":
        return dense.masked_fill(~keep_mask, 0.0), ""
    if update == "sparsegpt":
        factor = hessians.factor(statistics)
        weights, _ = sparsegpt(
            dense.to(factor.upper.dtype),
            factor,
            lambda _: keep_mask,
            dense.shape[1],
            stage.block_size,
        )
        return weights, _factor_note(factor, stage)
    hessian = hessians.hessian(statistics)
    if update == "admm":
        weights, _ = admm(dense, hessian, lambda *_: keep_mask)
        return weights, ""
    solve = least_squares if update == "least_squares" else conjugate_gradient
    return solve(dense, hessian, keep_mask, stage.damping), ""


def _columns_at_once(sparsity: Sparsity, stage: PruneStage, columns: int) -> int:
    """How far ahead SparseGPT chooses its mask: one comparison group."""
    if sparsity.group is not None:
        return sparsity.group
    return stage.block_size if stage.resolved_comparison_group() == "block" else columns


def _factor_note(factor: HessianFactor, stage: PruneStage) -> str:
    if factor.dtype == torch.float32 and factor.damping == stage.damping:
        return ""
    return (
        f"the Hessian was factored in {str(factor.dtype).removeprefix('torch.')} "
        f"with damping {factor.damping:g}"
    )
