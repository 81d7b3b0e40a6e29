"""The table of choices of a model, measured here."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.fingerprint import probe_tokens
from secateur.errors import SecateurError
from secateur.models.device import full_precision_products
from secateur.models.entering import enterable_forms
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.measure import num_bytes, own_tensors
from secateur.models.sites import WeightSite
from secateur.models.sublayers import Sublayers
from secateur.plan.layer_times import form_name
from secateur.plan.losses import Asked, Losses, measure_losses, split_tokens
from secateur.plan.options import (
    IMPORTANCE_SAMPLES,
    PlanOptions,
    check_sparse24,
    offered_ranks,
)
from secateur.plan.table import DENSE, SPARSE24, Choice, Part, Removal, Table, Unit
from secateur.plan.times import Setup, Times, measure_times
from secateur.plan.workload import Workload
from secateur.progress import Progress
from secateur.recipe import DropBlocksStage, ImportanceName
from secateur.stages.drop_plan import check_sublayers
from secateur.stages.factor_importance import Importance, measure_importance
from secateur_kernels.layouts.canonical24 import COLUMNS_PER_BYTE

# An error e of an output moves a token's loss by g . e; the mean rise is half the mean square.
_RISE_BY_WORTH = 0.5
_NOTES = {
    "loss": "whole outputs are weighed, not their directions, whose gradients do not fit in memory",
    "output": "all matrices count the same where ranks are shared out: a backward pass does not "
    "fit in memory, or does not reach all of them",
}


@dataclass(frozen=True)
class Measured:
    """A table, and what it was made of."""

    table: Table
    dense_loss: float
    """Nats a token, on the held-out samples."""
    time_scale: float
    """What a layer takes inside the model over what it takes alone."""
    notes: tuple[str, ...]
    importance: ImportanceName = "directions"
    """By what the losses of forms were estimated: as asked for, or as finely as memory allows."""


def measure_table(
    model: nn.Module,
    tokens: CalibrationTokens,
    workload: Workload,
    options: PlanOptions,
    progress: Progress,
) -> Measured:
    """Measure times and losses of all choices (see `plan.losses`).

    Args:
        model: a causal language model, dense, in evaluation mode, where it is to be timed; left as
            it was.
        tokens: to fit factors to and to measure losses on.
        workload: whose time counts.
        options: what is offered.
        progress: told how far it is.

    Raises:
        SecateurError: the model has no layer to choose for, cannot do the workload or be run from
            the middle, or 2:4 is offered in another dtype than bf16 and fp16.
    """
    device = next(model.parameters()).device
    workload.check(model)
    methods = options.resolved_methods(device)
    inventory = take_inventory(model)
    forms = enterable_forms(model, inventory.blocks, probe_tokens(model))
    sites = _units(inventory)
    check_sparse24(methods, sites[0].parameter.dtype)
    sublayers, notes = _sublayers(model, inventory, options, methods)
    asked = Asked(
        ranks={site.name: _ranks(site, options, methods) for site in sites},
        with_sparse24="2:4" in methods,
        removals="drop" in methods,
        sublayers=sublayers,
    )
    importance: dict[str, Importance] | None = None
    kind = options.importance
    with full_precision_products():
        if asked.with_sparse24 or any(asked.ranks.values()):
            fitted, _ = split_tokens(tokens)
            importance, kind = _importance(model, sites, fitted, options.importance)
            notes += () if kind == options.importance else (_NOTES[kind],)
        losses = measure_losses(
            model, inventory, asked, tokens, importance, options.damping, device, progress
        )
    # Directions are as large as a model; what is timed may need their room.
    del importance
    setup = Setup(
        model,
        inventory.blocks,
        forms,
        sites,
        asked.ranks,
        asked.with_sparse24,
        sublayers,
        workload,
        device,
        options.rounds,
    )
    with workload.its_threads():
        times = measure_times(setup, progress)
    table = build_table(model, inventory, sites, asked, losses, times)
    return Measured(table, losses.start, times.scale, notes, kind)


def _importance(
    model: nn.Module, sites: list[WeightSite], tokens: CalibrationTokens, asked: ImportanceName
) -> tuple[dict[str, Importance] | None, ImportanceName]:
    """Of every unit for the loss, as finely as memory allows, and which one it is."""
    kinds: tuple[ImportanceName, ...] = ("directions", "loss")
    for kind in kinds[kinds.index(asked) :] if asked in kinds else ():
        try:
            found = measure_importance(
                model, sites, tokens, kind == "directions", IMPORTANCE_SAMPLES
            )
        except torch.OutOfMemoryError:
            continue
        return found, kind if found else "output"
    return None, "output"


def _units(inventory: Inventory) -> list[WeightSite]:
    """Every matrix that all tokens pass through; how many reach an expert is not known."""
    sites = [site for site in inventory.all_sites if not site.is_expert]
    if not sites:
        raise SecateurError("expected matrices that all tokens pass through, found experts alone")
    return sites


def _ranks(site: WeightSite, options: PlanOptions, methods: tuple[str, ...]) -> tuple[int, ...]:
    return offered_ranks(site.shape, options.rank_fractions) if "low-rank" in methods else ()


def _sublayers(
    model: nn.Module, inventory: Inventory, options: PlanOptions, methods: tuple[str, ...]
) -> tuple[tuple[Sublayers, ...], tuple[str, ...]]:
    """By block; empty where parts are not offered, with a note where the family forbids it."""
    if "drop" not in methods or not options.parts:
        return (), ()
    found: tuple[Sublayers, ...] = ()
    try:
        for part in ("attention", "mlp"):
            stage = DropBlocksStage(blocks=(0,), granularity=part)
            found = check_sublayers(model, inventory.blocks, stage, probe_tokens(model))
    except SecateurError as error:
        return (), (f"attention and MLP are not offered to go by themselves: {error}",)
    return found, ()


def build_table(
    model: nn.Module,
    inventory: Inventory,
    sites: list[WeightSite],
    asked: Asked,
    losses: Losses,
    times: Times,
) -> Table:
    """Put what was measured together.

    The rest is what the dense model takes beside its units, and a removal what its part takes
    beside its own, so that dense and removals come out as measured.
    """
    block_of = {site.name: index for index, found in enumerate(inventory.sites) for site in found}
    units = tuple(
        Unit(
            site.name,
            block_of[site.name],
            site.shape,
            _choices(site, asked, losses, times),
        )
        for site in sites
    )
    freed = _Freed(model)
    removals = tuple(
        _removal(inventory, index, part, units, asked, freed, loss=losses.rise(loss), times=times)
        for (index, part), loss in losses.removals.items()
        # Without some parts a model in 16 bits overflows: these do not go.
        if isfinite(loss)
    )
    return Table(
        units,
        removals,
        len(inventory.blocks),
        times.dense - sum(unit.dense.milliseconds for unit in units),
        num_bytes(model) - sum(unit.dense.num_bytes for unit in units),
    )


def _choices(site: WeightSite, asked: Asked, losses: Losses, times: Times) -> tuple[Choice, ...]:
    rows, columns = site.shape
    size = site.parameter.element_size()
    found = times.forms[site.name]

    def choice(form: str, num_bytes: int, rank: int | None = None) -> Choice:
        lost = losses.worth[site.name] * losses.left_out[site.name, form]
        return Choice(form, found[form], num_bytes, _RISE_BY_WORTH * lost, rank)

    choices = [Choice(DENSE, found[DENSE], rows * columns * size, 0.0)]
    if SPARSE24 in found:
        # Half the values, and a byte for the places of those of eight columns.
        row_bytes = columns // 2 * size + -(-columns // COLUMNS_PER_BYTE)
        choices.append(choice(SPARSE24, rows * row_bytes))
    factors = [
        choice(form_name(rank), rank * (rows + columns) * size, rank)
        for rank in reversed(asked.ranks[site.name])
    ]
    return (*choices, *factors)


def _removal(
    inventory: Inventory,
    index: int,
    part: Part,
    units: tuple[Unit, ...],
    asked: Asked,
    freed: "_Freed",
    *,
    loss: float,
    times: Times,
) -> Removal:
    block = inventory.blocks.modules[index]
    children = _children(block, index, part, asked)
    prefix = inventory.blocks.block_name(index) + "."
    own = [
        unit
        for unit in units
        if unit.block == index and unit.name.removeprefix(prefix).split(".")[0] in children
    ]
    return Removal(
        block=index,
        part=part,
        units=tuple(unit.name for unit in own),
        milliseconds=times.parts[index, part] - sum(unit.dense.milliseconds for unit in own),
        num_bytes=freed.bytes([prefix + name for name in children])
        - sum(unit.dense.num_bytes for unit in own),
        loss=loss,
    )


class _Freed:
    """What goes out of memory with parts of a model: not what others hold as well."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: dict[int, Tensor] = {}
        self._holders: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            for tensor in own_tensors(module).values():
                self._tensors[id(tensor)] = tensor
                self._holders.setdefault(id(tensor), []).append(f"{name}.")

    def bytes(self, names: Sequence[str]) -> int:
        """Of the modules with these names and all that is in them."""
        prefixes = tuple(f"{name}." for name in names)
        return sum(
            self._tensors[key].nbytes
            for key, holders in self._holders.items()
            if all(holder.startswith(prefixes) for holder in holders)
        )


def _children(block: nn.Module, index: int, part: Part, asked: Asked) -> tuple[str, ...]:
    """Names of the block's children that go."""
    if part == "block":
        return tuple(name for name, _ in block.named_children())
    return asked.sublayers[index].names(part)
