"""Prune one matrix: score -> keep mask -> swaps -> update -> write; each a pure function."""

from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from secateur.mask import swap_masked
from secateur.models.measure import num_zeros
from secateur.recipe import PruneStage
from secateur.recipe.prune_stage import Score
from secateur.report.record import LayerRecord
from secateur.score import score_magnitude
from secateur.stages.prune_plan import PlannedSite
from secateur.stages.prune_score import (
    SiteFacts,
    require_finite_inputs,
    score_site,
    selector,
)
from secateur.stages.prune_update import SharedHessians, settle, update_on_mask
from secateur_kernels.precision import wide_dtype


@dataclass(frozen=True, eq=False)
class PrunedSite:
    """One matrix after it was pruned."""

    planned: PlannedSite
    record: LayerRecord
    keep_mask: Tensor
    """bool [N, K]."""
    score: Score | None
    """What was really scored by; None where mask and weights were settled together."""


def prune_site(
    planned: PlannedSite,
    stage: PruneStage,
    block: int,
    facts: SiteFacts,
    hessians: SharedHessians,
) -> PrunedSite:
    """Prune one matrix in place and say what was done.

    Args:
        planned: the site and its sparsity.
        stage: method and its options.
        block: index, for the record.
        facts: what calibration says about the matrix.
        hessians: shared by the sites of this block.

    Raises:
        SecateurError: the activations are not finite.
    """
    started = perf_counter()
    site = planned.site
    why_magnitude = _why_magnitude(planned, stage, facts.num_tokens)
    # Kept weights must come back bit for bit, so that float64 is not narrowed on the way.
    dense = site.weight.to(wide_dtype(site.weight.dtype))
    if why_magnitude:
        mask = selector(planned.sparsity, stage)(score_magnitude(dense))
        outcome = _Outcome(dense.masked_fill(~mask, 0.0), mask)
    else:
        outcome = _prune(dense, planned, stage, facts, hessians)
    pruned = outcome.weights.to(site.parameter.dtype)
    error = facts.statistics.output_error(dense, pruned) if facts.statistics else None
    site.weight.copy_(pruned)
    record = LayerRecord(
        name=site.name,
        block=block,
        shape=site.shape,
        method="magnitude" if why_magnitude else stage.method,
        pattern=planned.sparsity.name,
        sparsity=fraction_of_zeros(pruned),
        output_error=error,
        num_tokens=facts.num_tokens,
        seconds=perf_counter() - started,
        note="; ".join(part for part in (why_magnitude, outcome.note) if part),
        swaps=outcome.swaps,
    )
    score = "magnitude" if why_magnitude else stage.score
    return PrunedSite(planned, record, outcome.mask, score)


def fraction_of_zeros(weight: Tensor) -> float:
    """Counted."""
    return num_zeros([weight]) / weight.numel()


def _why_magnitude(planned: PlannedSite, stage: PruneStage, num_tokens: int) -> str:
    """The reason to prune by magnitude alone whatever the method is, or nothing."""
    if stage.method == "magnitude" and not stage.needs_hessian:
        return ""
    if planned.site.is_expert and num_tokens < stage.min_expert_tokens:
        return (
            f"pruned by magnitude: {num_tokens} calibration tokens were routed to this expert, "
            f"fewer than min_expert_tokens = {stage.min_expert_tokens}"
        )
    if num_tokens == 0:
        return "pruned by magnitude: no calibration token was seen to reach it"
    return ""


@dataclass(frozen=True, eq=False)
class _Outcome:
    weights: Tensor
    mask: Tensor
    swaps: int = 0
    note: str = ""


def _prune(
    dense: Tensor,
    planned: PlannedSite,
    stage: PruneStage,
    facts: SiteFacts,
    hessians: SharedHessians,
) -> _Outcome:
    if stage.method != "magnitude" or stage.needs_hessian:
        require_finite_inputs(facts, planned.site.name)
    if stage.score is None:
        assert facts.statistics is not None
        found = settle(dense, planned.sparsity, stage, facts.statistics, hessians)
        outcome = _Outcome(found[0], found[1], note=found[2])
    else:
        mask = selector(planned.sparsity, stage)(score_site(dense, stage.score, stage, facts))
        outcome = _Outcome(dense.masked_fill(~mask, 0.0), mask)
    if stage.swaps or stage.resolved_update() != stage.own_update():
        return _refine(dense, outcome.mask, planned, stage, facts, hessians)
    return outcome


def _refine(
    dense: Tensor,
    mask: Tensor,
    planned: PlannedSite,
    stage: PruneStage,
    facts: SiteFacts,
    hessians: SharedHessians,
) -> _Outcome:
    """Trade weights of the mask, then make the kept ones anew from the dense ones."""
    assert facts.statistics is not None
    swaps = 0
    if stage.swaps:
        hessian = hessians.hessian(facts.statistics)
        mask, traded = swap_masked(dense, hessian, mask, planned.sparsity.group, stage.swaps)
        swaps = int(traded.sum())
    weights, note = update_on_mask(
        dense, mask, stage.resolved_update(), stage, facts.statistics, hessians
    )
    return _Outcome(weights, mask, swaps, note)
