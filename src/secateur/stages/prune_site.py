"""Prune one matrix: score -> keep mask -> (update weights) -> write; each a pure function."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from secateur.calibration.statistics import InputStatistics, RelativeError
from secateur.errors import SecateurError
from secateur.mask import select_grouped, select_unstructured
from secateur.recipe import Method, PruneStage, Sparsity
from secateur.report.record import LayerRecord
from secateur.score import score_magnitude, score_wanda
from secateur.stages.prune_plan import PlannedSite
from secateur.update import HessianFactor, factor_hessian, sparsegpt
from secateur_kernels.backends import HAS_TRITON
from secateur_kernels.pack24.op import pack24


class SharedHessians:
    """Factors of the block's Hessians, made once for all layers that share an input."""

    def __init__(self, damping: float, num_samples: int) -> None:
        self._damping = damping
        self._num_samples = num_samples
        self._factors: dict[int, HessianFactor] = {}

    def factor(self, statistics: InputStatistics) -> HessianFactor:
        """The factor for a layer with these statistics."""
        if id(statistics) not in self._factors:
            hessian = statistics.hessian(self._num_samples)
            self._factors[id(statistics)] = factor_hessian(hessian, self._damping)
        return self._factors[id(statistics)]


def prune_site(
    planned: PlannedSite,
    stage: PruneStage,
    block: int,
    statistics: InputStatistics | None,
    num_samples: int,
    hessians: SharedHessians,
) -> LayerRecord:
    """Prune one matrix in place and say what was done.

    Args:
        planned: the site and its sparsity.
        stage: method and its options.
        block: index, for the record.
        statistics: of the site's inputs; None without calibration (magnitude only).
        num_samples: calibration samples, to average over.
        hessians: shared by the sites of this block.

    Raises:
        SecateurError: the activations are not finite.
    """
    started = perf_counter()
    site = planned.site
    num_tokens = statistics.num_tokens if statistics else 0
    method, note = _method_for(planned, stage, num_tokens)
    # Kept weights must come back bit for bit, so that float64 is not narrowed on the way.
    dense = site.weight if site.weight.element_size() == 8 else site.weight.float()
    pruned, notes = _prune(dense, planned, stage, method, statistics, num_samples, hessians)
    pruned = pruned.to(site.parameter.dtype)
    error = _output_error(dense, pruned, statistics)
    site.weight.copy_(pruned)
    return LayerRecord(
        name=site.name,
        block=block,
        shape=site.shape,
        method=method,
        pattern=planned.sparsity.name,
        sparsity=float((pruned == 0).float().mean(dtype=torch.float64)),
        output_error=error,
        num_tokens=num_tokens,
        seconds=perf_counter() - started,
        note="; ".join(part for part in (note, notes) if part),
    )


def _method_for(planned: PlannedSite, stage: PruneStage, num_tokens: int) -> tuple[Method, str]:
    if stage.method == "magnitude":
        return stage.method, ""
    if planned.site.is_expert and num_tokens < stage.min_expert_tokens:
        return "magnitude", (
            f"pruned by magnitude: {num_tokens} calibration tokens were routed to this expert, "
            f"fewer than min_expert_tokens = {stage.min_expert_tokens}"
        )
    if num_tokens == 0:
        return "magnitude", "pruned by magnitude: no calibration token was seen to reach it"
    return stage.method, ""


def _prune(
    dense: Tensor,
    planned: PlannedSite,
    stage: PruneStage,
    method: Method,
    statistics: InputStatistics | None,
    num_samples: int,
    hessians: SharedHessians,
) -> tuple[Tensor, str]:
    select = _selector(planned.sparsity, stage)
    if method == "magnitude":
        mask = _mask_in_one_pass(planned, None)
        mask = select(score_magnitude(dense)) if mask is None else mask
        return dense.masked_fill(~mask, 0.0), ""
    assert statistics is not None
    input_norm = statistics.input_norm(num_samples)
    _require_finite(input_norm, planned)
    if method == "wanda":
        mask = _mask_in_one_pass(planned, input_norm)
        mask = select(score_wanda(dense, input_norm)) if mask is None else mask
        return dense.masked_fill(~mask, 0.0), ""
    factor = hessians.factor(statistics)
    columns = _columns_at_once(planned.sparsity, stage, dense.shape[1])
    pruned, _ = sparsegpt(dense.to(factor.upper.dtype), factor, select, columns, stage.block_size)
    return pruned, _factor_note(factor, stage)


def _mask_in_one_pass(planned: PlannedSite, input_norm: Tensor | None) -> Tensor | None:
    """The 2:4 mask on a GPU, from the weights as they are stored, without a tensor of scores.

    None where the kernel does not serve; bit for bit what scoring and selecting give.
    """
    weight, sparsity = planned.site.weight, planned.sparsity
    if not HAS_TRITON or weight.device.type != "cuda" or weight.element_size() == 8:
        return None
    norm_fits = input_norm is None or input_norm.dtype == torch.float32
    if (sparsity.keep, sparsity.group) != (2, 4) or not norm_fits:
        return None
    return pack24(weight, input_norm=input_norm).keep_mask


def _selector(sparsity: Sparsity, stage: PruneStage) -> Callable[[Tensor], Tensor]:
    keep, group = sparsity.keep, sparsity.group
    if keep is not None and group is not None:
        return lambda score: select_grouped(score, keep, group)
    compared = stage.resolved_comparison_group()
    return lambda score: select_unstructured(score, sparsity.fraction, compared, stage.block_size)


def _columns_at_once(sparsity: Sparsity, stage: PruneStage, columns: int) -> int:
    """How far ahead SparseGPT chooses its mask: one comparison group."""
    if sparsity.group is not None:
        return sparsity.group
    return stage.block_size if stage.resolved_comparison_group() == "block" else columns


def _require_finite(input_norm: Tensor, planned: PlannedSite) -> None:
    if not bool(torch.isfinite(input_norm).all()):
        raise SecateurError(
            f"activations that enter {planned.site.name} hold NaN or Inf; the model (or its dtype) "
            "overflows on the calibration tokens"
        )


def _factor_note(factor: HessianFactor, stage: PruneStage) -> str:
    if factor.dtype == torch.float32 and factor.damping == stage.damping:
        return ""
    return (
        f"the Hessian was factored in {str(factor.dtype).removeprefix('torch.')} "
        f"with damping {factor.damping:g}"
    )


def _output_error(
    dense: Tensor, pruned: Tensor, statistics: InputStatistics | None
) -> float | None:
    if statistics is None or statistics.num_tokens == 0:
        return None
    inputs = statistics.sample().float()
    error = RelativeError()
    error.add(inputs @ pruned.float().T, inputs @ dense.float().T)
    return error.value
