"""Build what was selected, measure it, and select again where it is not as fast as predicted."""

import copy
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.compress import compress_with_report
from secateur.depth.token_loss import TokenLoss
from secateur.evaluate.perplexity import perplexity
from secateur.models.blocks import find_blocks
from secateur.models.measure import num_bytes
from secateur.models.swap import pack_model
from secateur.plan.losses import TOKENS_PER_BATCH, split_tokens
from secateur.plan.recipe import plan_recipe
from secateur.plan.result import Measurement
from secateur.plan.solve import Nearby, find
from secateur.plan.table import DENSE, SPARSE24, Limit, Selection, Table, retimed
from secateur.plan.turns import Variant, milliseconds_in_turns
from secateur.plan.workload import Workload, workload_call
from secateur.progress import SilentProgress
from secateur.recipe import ImportanceName, Recipe

# A built model may be off its limit by this much before another one is selected.
TOLERANCE = 0.01
_ATTEMPTS = 4


@dataclass(frozen=True)
class Bench:
    """The dense model, and what everything built is measured on."""

    model: nn.Module
    tokens: CalibrationTokens
    workload: Workload
    rounds: int
    damping: float
    evaluation: Tensor | None = None
    """Token ids int64 [T]; None to measure no perplexity."""
    max_seq_length: int = 0
    """Tokens in a window of it."""
    importance: ImportanceName = "directions"
    """Of factor stages."""

    def recipe(self, selection: Selection) -> Recipe | None:
        """What `compress` makes the selection by; None where nothing is done."""
        return plan_recipe(selection, find_blocks(self.model), self.damping, self.importance)

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class Trial:
    """A selection as a model, and what it loses."""

    selection: Selection
    recipe: Recipe | None
    """None where nothing is done."""
    model: nn.Module
    loss: float
    """Nats a token, on the held-out samples."""
    losses: tuple[float, ...]
    """By held-out sample."""


@dataclass(frozen=True)
class Built:
    """A trial that was timed."""

    trial: Trial
    table: Table
    """That it was selected from, with times put right by what it takes."""
    speedup: float
    """Over dense, measured in turns with it."""
    attempts: int

    def taken(self, limit: Limit) -> float:
        """In parts of the limit; times in parts of the dense model's in the same turns."""
        if limit.milliseconds is None:
            return self.trial.selection.num_bytes / limit.value
        return self.table.dense_milliseconds / self.speedup / limit.value


def restricted(table: Table, method: str) -> Table:
    """The table with one method's choices only: `low-rank`, `2:4` or `drop`."""

    def fits(form: str) -> bool:
        return form == DENSE or {"2:4": form == SPARSE24, "low-rank": form != SPARSE24}[method]

    if method == "drop":
        units = tuple(replace(unit, choices=unit.choices[:1]) for unit in table.units)
        return replace(table, units=units)
    units = tuple(
        replace(unit, choices=tuple(c for c in unit.choices if fits(c.form)))
        for unit in table.units
    )
    return replace(table, units=units, removals=())


def build_selection(bench: Bench, selection: Selection) -> tuple[nn.Module, Recipe | None]:
    """A copy of the dense model, compressed as selected; the model itself if nothing is."""
    recipe = bench.recipe(selection)
    if recipe is None:
        return bench.model, None
    fitted, _ = split_tokens(bench.tokens)
    model, _ = compress_with_report(
        copy.deepcopy(bench.model), recipe, calibration=fitted, progress=SilentProgress()
    )
    model.eval()
    if any(choice.form == SPARSE24 for choice in selection.forms.values()):
        pack_model(model)
    return model, recipe


def build_trial(bench: Bench, selection: Selection) -> Trial:
    """Build a selection, and measure what it loses."""
    model, recipe = build_selection(bench, selection)
    return Trial(selection, recipe, model, *held_out_losses(bench, model))


def fitted_to(bench: Bench, table: Table, limit: Limit, trial: Trial) -> Built:
    """A trial, or where it is not as fast as asked its like: ranks anew by times put right.

    Where ranks do not suffice, more or less is removed.

    Args:
        bench: the dense model.
        table: that the trial was selected from.
        limit: to keep to.
        trial: to be timed.

    Returns:
        The slowest model of those that keep to the limit, or else the fastest.
    """
    built = best = _timed(bench, table, trial, 1)
    done = [_does(trial.selection)]
    del trial
    for attempt in range(2, _ATTEMPTS + 1):
        selection = _again(built, limit)
        if selection is None or _does(selection) in done:
            break
        done.append(_does(selection))
        table = built.table
        # Its model goes before another is built, unless it is the best.
        del built
        built = _timed(bench, table, build_trial(bench, selection), attempt)
        best = _better(best, built, limit)
    return best


def _timed(bench: Bench, table: Table, trial: Trial, attempt: int) -> Built:
    times = _times(bench, {"built": trial.model})
    speedup = times[DENSE] / times["built"]
    if trial.recipe is not None:
        table = retimed(table, trial.selection, table.dense_milliseconds / speedup)
    return Built(trial, table, speedup, attempt)


def _better(one: Built, other: Built, limit: Limit) -> Built:
    """The slower of those that keep to the limit, or else the faster; `one` if they are alike."""
    kept = [built for built in (one, other) if built.taken(limit) <= 1 + TOLERANCE]
    return max(kept or (one, other), key=lambda built: built.speedup * (-1 if kept else 1))


def _again(built: Built, limit: Limit) -> Selection | None:
    """What to select by times as built; None where it is as fast as asked, or as it gets."""
    selection, taken = built.trial.selection, built.taken(limit)
    if built.trial.recipe is None or 1 - TOLERANCE <= taken <= 1 + TOLERANCE:
        return None
    names = frozenset(removal.name for removal in selection.removals)
    return find(built.table, limit, Nearby(names, 0)) or find(built.table, limit)


def _does(selection: Selection) -> tuple[object, ...]:
    names = frozenset(removal.name for removal in selection.removals)
    return names, {name: choice.form for name, choice in selection.forms.items()}


def _times(bench: Bench, models: dict[str, nn.Module]) -> dict[str, float]:
    variants = {
        name: Variant.plain(workload_call(model, bench.workload))
        for name, model in {DENSE: bench.model, **models}.items()
    }
    with bench.workload.its_threads():
        return milliseconds_in_turns(variants, bench.device, bench.rounds)


def measure_built(bench: Bench, models: dict[str, nn.Module]) -> dict[str, Measurement]:
    """Time all models and the dense one in turns, then measure their loss and perplexity.

    Returns:
        by name, `dense` among them.
    """
    times = _times(bench, models)
    return {
        name: _measurement(bench, model, times[name], times[DENSE])
        for name, model in {DENSE: bench.model, **models}.items()
    }


def _measurement(bench: Bench, model: nn.Module, taken: float, dense: float) -> Measurement:
    loss, losses = held_out_losses(bench, model)
    found = Measurement(taken, dense, num_bytes(model), loss, losses)
    if bench.evaluation is None:
        return found
    result = perplexity(model, bench.evaluation, bench.max_seq_length)
    return replace(found, perplexity=result.perplexity, standard_error=result.standard_error)


@torch.no_grad()
def held_out_losses(bench: Bench, model: nn.Module) -> tuple[float, tuple[float, ...]]:
    """Losses in nats a token on the samples that losses were measured on.

    Returns:
        the mean over all tokens, and over those of each sample.
    """
    _, measured = split_tokens(bench.tokens)
    losses, counts = [], []
    for batch in measured.batches(TOKENS_PER_BATCH):
        input_ids = batch.to(bench.device)
        logits = model(input_ids=input_ids, use_cache=False).logits
        for one, ids in zip(logits.split(1), input_ids.split(1), strict=True):
            loss = TokenLoss()
            loss.add(one, ids)
            losses.append(loss.value())
            counts.append(ids.numel() - 1)
    return fmean(losses, counts), tuple(losses)
