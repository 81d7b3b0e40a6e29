"""What each choice costs: removals by measurement, other forms by an estimate.

What goes is left out alone, and the loss is measured on samples that nothing is fitted to. Of a
matrix that takes another form the share of its output that is lost is taken, on the samples that
the form is fitted to and in the metric that factors are found in: of factors as the factor stage
finds them (`svd-whitened`), of 2:4 as SparseGPT makes it. Times what the output is worth
(`measure_importance`) that estimates a loss, without the chance of a measurement on few samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs, capture_inputs
from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.lowrank import Cholesky, whitened_svd
from secateur.mask.grouped import select_grouped
from secateur.models.inventory import Inventory
from secateur.models.sites import WeightSite
from secateur.models.sublayers import Sublayers, silenced
from secateur.models.trace import Trace, trace_blocks
from secateur.plan.held_out import HeldOutLoss
from secateur.plan.layer_times import form_name
from secateur.plan.options import fits_sparse24
from secateur.plan.table import SPARSE24, Part
from secateur.progress import Progress
from secateur.spans import apart
from secateur.stages.factor_group import FactorGroup, input_root
from secateur.stages.factor_importance import Importance
from secateur.stages.factor_statistics import SiteMoments, collect_moments
from secateur.stages.factor_weights import weights_of
from secateur.update import factor_hessian, sparsegpt

TOKENS_PER_BATCH = 1024
_HELD_OUT_SHARE = 2


@dataclass(frozen=True)
class Asked:
    """The choices whose losses are wanted."""

    ranks: Mapping[str, Sequence[int]]
    """By site."""
    with_sparse24: bool
    """Of every site whose rows are whole groups of four."""
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
    """By site and form: the share of the squared output, weighed and whitened, that is lost."""
    worth: dict[str, float] = field(default_factory=dict)
    """By site: mean square of what the loss moves by where all of the output is lost."""

    def rise(self, loss: float) -> float:
        """Above the start; what falls by chance does not count as a gain."""
        return max(0.0, loss - self.start)


def split_tokens(tokens: CalibrationTokens) -> tuple[CalibrationTokens, CalibrationTokens]:
    """Samples to fit to, and samples to measure on: the last half.

    Where these would share tokens of one text, it is the half that lies last in the text, and
    samples that reach into it are in neither.

    Raises:
        SecateurError: there are fewer than two, or all share tokens.
    """
    count = len(tokens.samples)
    if count < 2:
        raise SecateurError(f"expected at least 2 calibration samples to plan by, got {count}")
    num_fitted = count - max(1, count // _HELD_OUT_SHARE)
    order, spans = list(range(count)), tokens.spans
    if spans and len(apart(order[:num_fitted], order[num_fitted:], spans)) < num_fitted:
        order.sort(key=spans.__getitem__)
    measured = order[num_fitted:]
    fitted = apart(order[:num_fitted], measured, spans)
    if not fitted:
        raise SecateurError(
            "expected calibration samples to fit to that share no token with those to measure on, "
            f"but all of {tokens.source} do; give more text, or fewer or shorter samples"
        )
    return tokens.only(fitted), tokens.only(measured)


@torch.no_grad()
def measure_losses(
    model: nn.Module,
    inventory: Inventory,
    asked: Asked,
    tokens: CalibrationTokens,
    importance: Mapping[str, Importance] | None,
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
        importance: of every site of `asked.ranks`; None: all are worth the same, 1 together.
        damping: of Hessians, and of the gradients of `importance`.
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
        walk = _BlockWalk(inventory, index, asked, inputs, trace, importance, damping, device)
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
    importance: Mapping[str, Importance] | None
    damping: float
    device: torch.device

    def measure(self, losses: Losses) -> None:
        """Run the block on what enters it, then look at every form."""
        block = self.inventory.blocks.modules[self.index]
        sites = [site for site in self.inventory.sites[self.index] if site.name in self.asked.ranks]
        moments = collect_moments(block, self.index, sites, (self.inputs,), self.trace, self.device)
        for site in sites:
            self._measure_site(site, moments[site.name], losses)

    def _measure_site(self, site: WeightSite, moments: SiteMoments, losses: Losses) -> None:
        group, count = FactorGroup((site,)), self.inputs.num_samples
        [weight] = group.weights()
        root = input_root(group, moments, count, self.damping)
        weights = weights_of([site], [weight], root, self.importance, self.damping)
        stack = weights.stack([weight])
        whole = _energy(stack, root)
        losses.worth[site.name] = 1.0 / len(self.asked.ranks)
        if self.importance is not None:
            tokens_a_sample = moments.statistics.num_tokens / count
            losses.worth[site.name] = weights.worth(whole, tokens_a_sample)
        ranks = self.asked.ranks[site.name]
        if ranks:
            found = whitened_svd(stack, root)
            for rank in ranks:
                losses.left_out[site.name, form_name(rank)] = found.relative_error(rank) ** 2
        if self.asked.with_sparse24 and fits_sparse24(site.shape):
            factor = factor_hessian(moments.statistics.hessian(count), self.damping)
            pruned, _ = sparsegpt(weight.to(factor.upper.dtype), factor, _two_of_four, 4)
            lost = _energy(weights.stack([weight - pruned]), root)
            losses.left_out[site.name, SPARSE24] = lost / whole if whole else 0.0


def _energy(weight: Tensor, root: Cholesky) -> float:
    return float((weight.double() @ root.lower).square().sum())


def _two_of_four(scores: Tensor) -> Tensor:
    return select_grouped(scores, 2, 4)
