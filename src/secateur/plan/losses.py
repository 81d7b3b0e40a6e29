"""What each choice costs: removals by measurement, other forms by an estimate.

What goes is left out alone, and the loss is measured on samples that nothing is fitted to. Of a
matrix that takes another form the share of its output that is lost is taken, on the samples that
the form is fitted to: of factors as the factor stage finds them (`svd-whitened`), of 2:4 as
SparseGPT makes it. Times what the output is worth (`measure_importance`) that estimates a loss, to
first order and without the chance of a measurement on few samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
from secateur.plan.table import SPARSE24, Part
from secateur.progress import Progress
from secateur.stages.factor_group import FactorGroup, input_root
from secateur.stages.factor_statistics import SiteMoments, collect_moments
from secateur.update import factor_hessian, sparsegpt

TOKENS_PER_BATCH = 1024
_HELD_OUT_SHARE = 2


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


@dataclass(frozen=True)
class Losses:
    """What single changes to a model lose."""

    start: float
    """Mean loss of the model as it is, nats a token."""
    removals: dict[tuple[int, Part], float] = field(default_factory=dict)
    """By block and what of it is gone: the loss then."""
    left_out: dict[tuple[str, str], float] = field(default_factory=dict)
    """By site and form: the share of the squared output, whitened, that is lost."""

    def rise(self, loss: float) -> float:
        """Above the start; what falls by chance does not count as a gain."""
        return max(0.0, loss - self.start)


def split_tokens(tokens: CalibrationTokens) -> tuple[CalibrationTokens, CalibrationTokens]:
    """Samples to fit to, and samples to measure on: the last half.

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
    """What each choice loses alone, block after block.

    Args:
        model: on `device`, in evaluation mode; left bit for bit as it was.
        inventory: of the model.
        asked: the choices.
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
    progress.begin("loss of each choice", len(blocks))
    for index in range(len(blocks)):
        held_out.move_to(index)
        walk = _BlockWalk(inventory, index, asked, inputs, trace, damping, device)
        walk.measure(losses)
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
    losses.removals[index, "block"] = held_out.value(without_block=True)
    parts: tuple[Literal["attention", "mlp"], ...]
    parts = ("attention", "mlp") if asked.sublayers else ()
    for part in parts:
        if (half := asked.sublayers[index].part(part)) is not None:
            with silenced(block, half):
                losses.removals[index, part] = held_out.value()


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

    def measure(self, losses: Losses) -> None:
        """Run the block on what enters it, then look at every form."""
        block = self.inventory.blocks.modules[self.index]
        sites = [site for site in self.inventory.sites[self.index] if site.name in self.asked.ranks]
        moments = collect_moments(block, self.index, sites, (self.inputs,), self.trace, self.device)
        for site in sites:
            for form, share in self._shares(site, moments[site.name]):
                losses.left_out[site.name, form] = share

    def _shares(self, site: WeightSite, moments: SiteMoments) -> Iterator[tuple[str, float]]:
        group, count = FactorGroup((site,)), self.inputs.num_samples
        [weight] = group.weights()
        root = input_root(group, moments, count, self.damping)
        ranks = self.asked.ranks[site.name]
        if ranks:
            found = whitened_svd(weight, root)
            for rank in ranks:
                yield form_name(rank), found.relative_error(rank) ** 2
        if self.asked.with_sparse24:
            factor = factor_hessian(moments.statistics.hessian(count), self.damping)
            pruned, _ = sparsegpt(weight.to(factor.upper.dtype), factor, _two_of_four, 4)
            yield SPARSE24, _share((weight - pruned).double(), weight.double(), root.lower)


def _share(error: Tensor, weight: Tensor, root: Tensor) -> float:
    """Of the squared output that an error of the weight makes up; 0 of a weight without output."""
    whole = float((weight @ root).square().sum())
    return float((error @ root).square().sum()) / whole if whole else 0.0


def _two_of_four(scores: Tensor) -> Tensor:
    return select_grouped(scores, 2, 4)
