"""Build what was selected, measure it, and select again where it is slower than was predicted."""

import copy
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.compress import compress_with_report
from secateur.depth.token_loss import TokenLoss
from secateur.errors import SecateurError
from secateur.evaluate.perplexity import perplexity
from secateur.models.blocks import find_blocks
from secateur.models.measure import num_bytes
from secateur.models.swap import pack_model
from secateur.plan.losses import TOKENS_PER_BATCH, split_tokens
from secateur.plan.recipe import plan_recipe
from secateur.plan.result import Measurement
from secateur.plan.solve import solve
from secateur.plan.table import DENSE, SPARSE24, Limit, Selection, Table, retimed
from secateur.plan.turns import Variant, milliseconds_in_turns
from secateur.plan.workload import Workload, workload_call
from secateur.progress import SilentProgress
from secateur.recipe import Recipe

# A built model may be slower than its limit by this much before a faster one is selected.
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

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class Built:
    """A selection as a model."""

    selection: Selection
    recipe: Recipe | None
    model: nn.Module
    table: Table
    """That it was selected from, with times put right by what it takes."""
    speedup: float
    """Over dense, measured in turns with it."""
    attempts: int

    def keeps_to(self, limit: Limit) -> bool:
        """Whether it is as fast as asked, or nearly so; a limit of bytes is kept to exactly."""
        if limit.milliseconds is None:
            return self.selection.num_bytes <= limit.value
        taken = self.table.dense_milliseconds / self.speedup
        return taken <= limit.milliseconds * (1 + TOLERANCE)


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
    recipe = plan_recipe(selection, find_blocks(bench.model), bench.damping)
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


def build_within(bench: Bench, table: Table, limit: Limit) -> Built:
    """Select, build and time; where the model is slower than asked, with times put right again.

    Raises:
        SecateurError: the table has no selection within the limit.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        selection = solve(table, limit)
        model, recipe = build_selection(bench, selection)
        times = _times(bench, {"built": model})
        speedup = times[DENSE] / times["built"]
        if recipe is not None:
            table = retimed(table, selection, table.dense_milliseconds / speedup)
        built = Built(selection, recipe, model, table, speedup, attempt)
        if recipe is None or built.keeps_to(limit) or attempt == _ATTEMPTS:
            return built
        if not is_within_reach(table, limit):  # as fast as it gets
            return built
    raise AssertionError("unreachable")


def is_within_reach(table: Table, limit: Limit) -> bool:
    """Whether some selection keeps to a limit."""
    try:
        solve(table, limit)
    except SecateurError:
        return False
    return True


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


def held_out_loss(bench: Bench, model: nn.Module) -> float:
    """Mean loss in nats a token on the samples that losses were measured on."""
    loss, _ = held_out_losses(bench, model)
    return loss


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
