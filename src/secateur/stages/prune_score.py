"""From what calibration saw of a matrix to scores, and from scores to the keep mask."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.calibration.statistics import InputStatistics
from secateur.errors import SecateurError
from secateur.mask import select_grouped, select_unstructured
from secateur.recipe import PruneStage, Sparsity
from secateur.recipe.prune_stage import Score
from secateur.score import (
    norm_divisor,
    score_gblm,
    score_magnitude,
    score_regional_gradient,
    score_ria,
    score_wanda,
)

Select = Callable[[Tensor], Tensor]
"""From scores [N, c] to the keep mask [N, c]."""


@dataclass(frozen=True, eq=False)
class SiteFacts:
    """What calibration says about one matrix [N, K]."""

    statistics: InputStatistics | None
    """Of its inputs; None without calibration."""
    gradient: Tensor | None
    """[N, K], of the block's output or of the model's loss; None where no score asks for it."""
    num_samples: int

    @property
    def num_tokens(self) -> int:
        """Calibration tokens that reached the matrix."""
        return self.statistics.num_tokens if self.statistics else 0


def score_site(weight: Tensor, score: Score, stage: PruneStage, facts: SiteFacts) -> Tensor:
    """Scores [N, K] of a matrix, fp32 or float64.

    Args:
        weight: [N, K], which need not be what it was when the facts were gathered.
        score: by what.
        stage: its options.
        facts: about the matrix; magnitude needs none.
    """
    if score == "magnitude":
        return score_magnitude(weight)
    assert facts.statistics is not None
    if score == "rgs":
        assert facts.gradient is not None
        divisor = norm_divisor(stage.norm, facts.num_samples)
        norm = facts.statistics.input_norm(divisor)
        return score_regional_gradient(weight, facts.gradient, norm, stage.alpha)
    norm = facts.statistics.input_norm(facts.num_samples)
    if score == "gblm":
        assert facts.gradient is not None
        return score_gblm(weight, facts.gradient, norm, stage.alpha)
    return score_wanda(weight, norm) if score == "wanda" else score_ria(weight, norm)


def selector(sparsity: Sparsity, stage: PruneStage, share: float = 1.0) -> Select:
    """How scores become a mask.

    Args:
        sparsity: of the matrix.
        stage: says which weights compete in unstructured sparsity.
        share: of the unstructured sparsity; a keep:group pattern is always whole.
    """
    keep, group = sparsity.keep, sparsity.group
    if keep is not None and group is not None:
        return lambda score: select_grouped(score, keep, group)
    compared = stage.resolved_comparison_group()
    fraction = share * sparsity.fraction
    return lambda score: select_unstructured(score, fraction, compared, stage.block_size)


def require_finite_inputs(facts: SiteFacts, name: str) -> None:
    """Raise SecateurError if the activations that enter the matrix `name` are not finite."""
    assert facts.statistics is not None
    if not bool(torch.isfinite(facts.statistics.input_norm(facts.num_samples)).all()):
        raise SecateurError(
            f"activations that enter {name} hold NaN or Inf; the model (or its dtype) "
            "overflows on the calibration tokens"
        )
