"""What each choice costs: it is made alone, the loss is measured, and it is undone.

The model is the dense one, or one that does what a plan's model does (`imitate`): then a choice
costs what it costs beside the plan's others. Factors are those that the factor stage would find on
that model (`svd-whitened`), 2:4 is what SparseGPT makes. The loss is measured on other samples than
those that the factors are fitted to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs, capture_inputs
from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.lowrank import whitened_svd
from secateur.mask.grouped import select_grouped
from secateur.models.inventory import Inventory
from secateur.models.sites import WeightSite
from secateur.models.sublayers import Sublayers, silenced
from secateur.models.trace import Trace, trace_blocks
from secateur.plan.held_out import HeldOutLoss
from secateur.plan.layer_times import form_name
from secateur.plan.table import DENSE, SPARSE24, Part
from secateur.progress import Progress
from secateur.stages.factor_group import FactorGroup, input_root
from secateur.stages.factor_statistics import SiteMoments, collect_moments
from secateur.update import factor_hessian, sparsegpt

TOKENS_PER_BATCH = 1024
_HELD_OUT_SHARE = 4


@dataclass(frozen=True)
class Asked:
    """The choices whose losses are wanted."""

    ranks: Mapping[str, Sequence[int]]
    """By site."""
    with_sparse24: bool
    removals: bool
    """Whole blocks."""
    sublayers: Sequence[Sublayers] = ()
    """By block, where attention and MLP may go by themselves."""
    dense_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """By site that holds another weight now: its choices are made of these, and dense is one."""
    removed: Mapping[int, Part] = field(default_factory=dict)
    """By block, what of it the model now runs without."""


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats a token."""

    start: float
    """Of the model as it was."""
    forms: dict[tuple[str, str], float] = field(default_factory=dict)
    """By site and form: with this one change."""
    removals: dict[tuple[int, Part], float] = field(default_factory=dict)
    """By block and what of it is gone, and nothing else of it."""
    restored: dict[int, float] = field(default_factory=dict)
    """By block of which something was removed: with it back, dense."""
    left_out: dict[tuple[str, str], float] = field(default_factory=dict)
    """By site and form of factors: the share of the squared output, whitened, that they lack."""

    def rise(self, loss: float) -> float:
        """Above the start; what falls by chance does not count as a gain."""
        return max(0.0, loss - self.start)


def split_tokens(tokens: CalibrationTokens) -> tuple[CalibrationTokens, CalibrationTokens]:
    """Samples to fit to, and samples to measure on: the last quarter.

    Raises:
        SecateurError: there are fewer than two.
    """
    count = len(tokens.samples)
    if count < 2:
        raise SecateurError(f"expected at least 2 calibration samples to plan by, got {count}")
    measured = max(1, count // _HELD_OUT_SHARE)
    fitted = tokens.samples[: count - measured], tokens.samples[count - measured :]
    return tuple(CalibrationTokens(part, tokens.source) for part in fitted)  # type: ignore[return-value]


@torch.no_grad()
def measure_losses(
    model: nn.Module,
    inventory: Inventory,
    asked: Asked,
    tokens: CalibrationTokens,
    damping: float,
    device: torch.device,
    progress: Progress,
) -> Losses:
    """The loss with each choice made alone, block after block.

    Args:
        model: on `device`, in evaluation mode; left bit for bit as it was.
        inventory: of the model.
        asked: the choices, and how the model differs from the dense one.
        tokens: to fit to and to measure on (see `split_tokens`).
        damping: of Hessians.
        device: where everything runs.
        progress: told after each block.

    Raises:
        SecateurError: too few samples, or activations that are not finite.
    """
    fitted, measured = split_tokens(tokens)
    blocks = inventory.blocks
    linears = {site.name: site.module for site in inventory.all_sites if site.expert is None}
    probe = fitted.samples[0].unsqueeze(0).to(device)
    trace = trace_blocks(model, blocks, linears, probe)
    inputs = capture_inputs(model, blocks, trace, fitted, TOKENS_PER_BATCH, device)
    batches = [batch.to(device) for batch in measured.batches(TOKENS_PER_BATCH)]
    held_out = HeldOutLoss(model, blocks, trace.output_forms, batches)
    held_out.move_to(0)
    losses = Losses(held_out.value())
    beside = "beside the others" if asked.dense_weights or asked.removed else "of each choice"
    progress.begin(f"loss {beside}", len(blocks))
    for index in range(len(blocks)):
        held_out.move_to(index)
        walk = _BlockWalk(inventory, index, asked, inputs, trace, damping, device)
        walk.measure(held_out.value, losses)
        _measure_removals(blocks.modules[index], index, asked, held_out, losses)
        for hidden, output in zip(inputs.hidden, inputs.outputs, strict=True):
            hidden.copy_(output)
        progress.advance(f"block {index}")
    return losses


def _measure_removals(
    block: nn.Module, index: int, asked: Asked, held_out: HeldOutLoss, losses: Losses
) -> None:
    if not asked.removals:
        return
    gone = asked.removed.get(index)
    with _whole(block, index, gone, asked):
        if gone is not None:
            losses.restored[index] = held_out.value()
        parts: tuple[Part, ...] = ("block", "attention", "mlp") if asked.sublayers else ("block",)
        for part in parts:
            if part == gone:
                losses.removals[index, part] = losses.start
            elif part == "block":
                losses.removals[index, part] = held_out.value(without_block=True)
            elif (half := asked.sublayers[index].part(part)) is not None:
                with silenced(block, half):
                    losses.removals[index, part] = held_out.value()


@contextmanager
def _whole(block: nn.Module, index: int, gone: Part | None, asked: Asked) -> Iterator[None]:
    """While this is open, the block computes again what it runs without."""
    if gone is None:
        yield
        return
    half = None if gone == "block" else asked.sublayers[index].part(gone)
    module = block if half is None else block.get_submodule(half.name)
    forward = vars(module).pop("forward")
    try:
        yield
    finally:
        module.forward = forward


@dataclass(frozen=True)
class _BlockWalk:
    """One block's matrices, each in every form."""

    inventory: Inventory
    index: int
    asked: Asked
    inputs: BlockInputs
    trace: Trace
    damping: float
    device: torch.device

    def measure(self, value: Callable[[], float], losses: Losses) -> None:
        """Run the block on what enters it, then try every form."""
        block = self.inventory.blocks.modules[self.index]
        sites = [site for site in self.inventory.sites[self.index] if site.name in self.asked.ranks]
        moments = collect_moments(block, self.index, sites, (self.inputs,), self.trace, self.device)
        for site in sites:
            for form, weight in self._weights(site, moments[site.name], losses):
                with _written(site, weight):
                    losses.forms[site.name, form] = value()

    def _weights(
        self, site: WeightSite, moments: SiteMoments, losses: Losses
    ) -> Iterator[tuple[str, Tensor]]:
        group, count = FactorGroup((site,)), self.inputs.num_samples
        dense = self.asked.dense_weights.get(site.name)
        if dense is not None:
            yield DENSE, dense
        weight = group.weights()[0] if dense is None else _wide(dense)
        ranks = self.asked.ranks[site.name]
        if ranks:
            found = whitened_svd(weight, input_root(group, moments, count, self.damping))
            energies = found.svd.values.double().square()
            for rank in ranks:
                share = float(energies[rank:].sum() / energies.sum().clamp_min(1e-300))
                losses.left_out[site.name, form_name(rank)] = share
                yield form_name(rank), found.factors(rank).dense()
        if self.asked.with_sparse24:
            factor = factor_hessian(moments.statistics.hessian(count), self.damping)
            pruned, _ = sparsegpt(weight.to(factor.upper.dtype), factor, _two_of_four, 4)
            yield SPARSE24, pruned


def _wide(weight: Tensor) -> Tensor:
    return weight if weight.element_size() == 8 else weight.float()


def _two_of_four(scores: Tensor) -> Tensor:
    return select_grouped(scores, 2, 4)


@contextmanager
def _written(site: WeightSite, weight: Tensor) -> Iterator[None]:
    """While this is open, the site holds another weight [N, K], rounded to its dtype."""
    saved = site.weight.clone()
    try:
        site.weight.copy_(weight.to(saved.dtype))
        yield
    finally:
        site.weight.copy_(saved)
