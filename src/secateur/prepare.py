"""Before anything is changed: open the model, draw calibration tokens, find every fault."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.calibration.data import CalibrationSource, check_source, load_calibration
from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.compact import needs_own_format
from secateur.checkpoint.fingerprint import probe_tokens
from secateur.checkpoint.load import LoadedModel, load_model, usable_device
from secateur.depth.drop import rehearse_drop
from secateur.errors import SecateurError
from secateur.evaluate.suite import window_length
from secateur.models.device import input_embedding, require_one_device
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.measure import require_finite_outputs, require_finite_weights
from secateur.models.sites import renamed
from secateur.models.sublayers import removed_sublayers
from secateur.models.swap import find_sparse24
from secateur.parallel import own_device
from secateur.recipe import DropBlocksStage, FactorStage, InheritStage, PruneStage, Recipe, Stage
from secateur.stages.drop_plan import check_drop_stage, check_sublayers
from secateur.stages.factor_plan import plan_factoring
from secateur.stages.prune_plan import plan_stage

DEFAULT_SAMPLES = 128


@dataclass(frozen=True)
class CalibrationChoice:
    """Which tokens to calibrate on."""

    source: CalibrationSource | None
    num_samples: int = DEFAULT_SAMPLES
    max_seq_length: int | None = None
    """None: 2048, or the model's context if that is shorter."""
    seed: int = 0


def open_model(
    model: nn.Module | str | Path,
    tokenizer: Any | None,
    revision: str | None,
    dtype: str,
    trust_remote_code: bool,
    accept_compact: bool = False,
) -> LoadedModel:
    """Load a model, or take one that is already in memory.

    `accept_compact`: layers may be compressed already, and parts of blocks removed, as they may
    where a model is only trained.

    Raises:
        SecateurError: it cannot be loaded, is quantised or on several devices, or options for
            loading come with an object.
    """
    if not isinstance(model, nn.Module | str | Path):
        raise SecateurError(
            f"expected a model folder, a Hub id or a model, got {type(model).__name__}"
        )
    if not isinstance(model, nn.Module):
        loaded = load_model(
            model,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            accept_compact=accept_compact,
        )
        return loaded if tokenizer is None else replace(loaded, tokenizer=tokenizer)
    if revision is not None or dtype != "auto":
        raise SecateurError("revision and dtype say how to load a model, but one was given loaded")
    is_quantised = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    if is_quantised and needs_own_format(model) and not accept_compact:
        raise SecateurError(
            f"{type(model).__name__} is of a compact Secateur checkpoint: compress what it was "
            "made of, all stages in one recipe, or (unless it is without the attention or MLP "
            "of some blocks) what `model.dequantize()` returns"
        )
    if is_quantised and not needs_own_format(model):
        raise SecateurError(
            f"{type(model).__name__} is already quantised; compress the original 16-bit or 32-bit "
            "model first, and quantise the result"
        )
    require_one_device(model)
    return LoadedModel(model, tokenizer, None, "in memory", None)


def _require_no_adapters(model: nn.Module) -> None:
    """PEFT's adapters look like linear layers, and would be pruned beside what they adapt."""
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise SecateurError(
                f"expected a plain model, but {name or 'it'} is PEFT's {type(module).__name__}: "
                "merge the adapters into the weights first (`merge_and_unload()`)"
            )


def check_form(model: nn.Module, recipe: Recipe, checkpoint_format: str) -> None:
    """Find before the work that its result could not be stored as asked.

    Raises:
        SecateurError: a model that lacks attention or MLP somewhere is to be dense, or nothing in
            it is going to be compact.
    """
    drops = [stage for stage in recipe.stages if isinstance(stage, DropBlocksStage)]
    if checkpoint_format == "dense" and (
        any(stage.makes_stand_ins for stage in drops) or removed_sublayers(model)
    ):
        raise SecateurError(
            "checkpoint_format dense cannot say that a block is without its attention or MLP: a "
            "plain model has both in every block. Leave it at auto or give compact, or drop whole "
            "blocks"
        )
    if checkpoint_format == "compact" and not (
        any(map(_may_compress, recipe.stages)) or needs_own_format(model) or find_sparse24(model)
    ):
        raise SecateurError(
            "expected a stage that makes 2:4 or low-rank layers, or takes attention or MLP out of "
            "blocks, to write compactly, but the recipe has none: leave out the format, or give "
            "dense"
        )


def _may_compress(stage: Stage) -> bool:
    if isinstance(stage, PruneStage):
        return any(sparsity.makes_sparse24 for sparsity in stage.sparsities)
    if isinstance(stage, FactorStage):
        return stage.writes_factors
    return isinstance(stage, DropBlocksStage) and stage.makes_stand_ins


def check_model(model: nn.Module, recipe: Recipe) -> Inventory:
    """Find the model's parts and check that every stage can work on them.

    Raises:
        SecateurError: weights that are not finite, adapters that are not merged, or a stage that
            does not fit the model.
    """
    _require_no_adapters(model)
    inventory = take_inventory(model)
    input_embedding(model)
    require_finite_weights(model)
    require_finite_outputs(model, probe_tokens(model))
    remaining = inventory
    for stage in recipe.stages:
        if isinstance(stage, PruneStage):
            plan_stage(stage, remaining)
        elif isinstance(stage, FactorStage):
            remaining = _after_factoring(remaining, stage)
        elif isinstance(stage, DropBlocksStage):
            check_drop_stage(stage, len(remaining.sites))
            remaining = _after_drop(model, remaining, stage)
        elif isinstance(stage, InheritStage):
            # How far it grows is not known yet: it has these blocks in any case.
            remaining = replace(remaining, sites=remaining.sites[: stage.blocks])
    return inventory


def _after_factoring(inventory: Inventory, stage: FactorStage) -> Inventory:
    """What later stages will find: low-rank layers are no sites."""
    plan = plan_factoring(stage, inventory)
    # Which matrices a budget leaves dense is not known yet.
    if not stage.writes_factors or stage.budget is not None:
        return inventory
    factored = {site.name for sites in plan.sites for site in sites}
    left = [tuple(s for s in sites if s.name not in factored) for sites in inventory.sites]
    return replace(inventory, sites=tuple(left))


def _after_drop(model: nn.Module, inventory: Inventory, stage: DropBlocksStage) -> Inventory:
    """What later stages will find: blocks are numbered anew, so that the first names remain."""
    if stage.makes_stand_ins:
        # Which matrices go with them is not known yet where a count is given.
        check_sublayers(model, inventory.blocks, stage, probe_tokens(model))
        return inventory
    is_untouched = len(inventory.sites) == len(inventory.blocks)
    if stage.blocks and is_untouched:
        rehearse_drop(model, inventory.blocks, stage.blocks)
    # Which blocks a count will drop is not known yet: the last ones stand for them.
    count = len(inventory.sites)
    dropped = stage.blocks or range(count - (stage.count or 0), count)
    kept = [sites for index, sites in enumerate(inventory.sites) if index not in dropped]
    return replace(
        inventory,
        sites=tuple(
            tuple(renamed(site, inventory.blocks.block_name(index)) for site in sites)
            for index, sites in enumerate(kept)
        ),
    )


def check_calibration(source: CalibrationSource | None, recipe: Recipe) -> None:
    """Find before a large model is loaded that there is nothing to calibrate on.

    Raises:
        SecateurError: the recipe needs calibration and there is no source, or no such file.
    """
    if source is None:
        if recipe.needs_calibration:
            raise SecateurError(
                "this recipe needs calibration (--calibration): give a text file, a folder, a "
                "JSON-lines file, a dataset name, texts or token ids; only magnitude, svd and "
                "laser do without"
            )
    else:
        check_source(source)


def draw_tokens(
    choice: CalibrationChoice, recipe: Recipe, loaded: LoadedModel
) -> CalibrationTokens | None:
    """Calibration tokens that fit the model; None where none were given and none are needed.

    Raises:
        SecateurError: they are missing, cannot be read, too few, too long, or not of this model.
    """
    check_calibration(choice.source, recipe)
    if choice.source is None:
        return None
    tokens = load_calibration(
        choice.source,
        loaded.tokenizer,
        num_samples=choice.num_samples,
        max_seq_length=window_length(loaded.model, choice.max_seq_length),
        seed=choice.seed,
    )
    tokens.check_fit(loaded.model)
    return tokens


def run_device(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """Where blocks run: as asked, else where the model is.

    Of several processes each has a GPU of its own, if `cuda` without a number is asked for.

    Raises:
        SecateurError: there is no such device here.
    """
    if device is not None:
        chosen = usable_device(device)
        return own_device(chosen) if chosen.index is None else chosen
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
