"""The stages of a recipe, one after the other, each on what the one before left."""

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor, nn

from secateur.ancestry import Ancestry
from secateur.calibration.inputs import (
    TOKENS_PER_BATCH,
    BlockInputs,
    capture_inputs,
    tokens_per_batch,
)
from secateur.calibration.model_gradients import model_gradients
from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.fingerprint import probe_tokens
from secateur.checkpoint.pattern import pruned_names
from secateur.clock import StepClock
from secateur.models.blocks import find_blocks
from secateur.models.device import full_precision_products
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.trace import Trace, trace_blocks
from secateur.parallel import Parallel, join_processes
from secateur.prepare_training import PreparedTraining
from secateur.progress import Progress
from secateur.recipe import (
    DropBlocksStage,
    FactorStage,
    InheritStage,
    PruneStage,
    Recipe,
    RecoverStage,
    Stage,
    TrainingStage,
)
from secateur.report.record import AnyStage, PruneRecord
from secateur.report.training_record import InheritRecord, RecoverRecord
from secateur.stages.drop import run_drop
from secateur.stages.drop_walk import DropCalibration
from secateur.stages.factor import BlockFactorer
from secateur.stages.factor_plan import plan_factoring
from secateur.stages.inherit import run_inherit
from secateur.stages.prune import BlockPruner
from secateur.stages.prune_plan import plan_stage
from secateur.stages.recover import run_recover


def run_stages(
    model: nn.Module,
    recipe: Recipe,
    tokens: CalibrationTokens | None,
    trainings: Mapping[int, PreparedTraining],
    ancestry: Ancestry,
    device: torch.device,
    clock: StepClock,
) -> list[AnyStage]:
    """Run the stages of a recipe on a model in place, each on the result of the one before.

    Args:
        model: checked by `check_model`.
        recipe: what to do.
        tokens: to calibrate on; None where no stage needs them.
        trainings: what training stages need, by their place in the recipe.
        ancestry: of the model as it is.
        device: where blocks run.
        clock: told how far each stage is and how long it took.
    """
    records: list[AnyStage] = []
    for place, stage in enumerate(recipe.stages):
        with clock.measured(f"stage {place + 1}: {_title(stage)}"):
            record: AnyStage
            if isinstance(stage, RecoverStage | InheritStage):
                record = _train(model, stage, trainings[place], ancestry, clock.progress)
            else:
                with full_precision_products():
                    record = _run_stage(model, stage, tokens, device, clock.progress)
        ancestry = ancestry.after(record)
        records.append(record)
    return records


def _title(stage: Stage) -> str:
    if isinstance(stage, DropBlocksStage):
        return "drop blocks"
    if isinstance(stage, InheritStage):
        return "inherit"
    return f"recover by {stage.method}" if isinstance(stage, RecoverStage) else stage.method


def _train(
    model: nn.Module,
    stage: TrainingStage,
    training: PreparedTraining,
    ancestry: Ancestry,
    progress: Progress,
) -> RecoverRecord | InheritRecord:
    texts, checkpoints, on_cpu = training.texts, training.checkpoints, training.on_cpu
    if isinstance(stage, InheritStage):
        return run_inherit(model, stage, texts, checkpoints, progress, on_cpu)
    dense, kept = training.dense, ancestry.kept
    pruned = pruned_names(ancestry.stages, find_blocks(model).name)
    return run_recover(model, stage, texts, dense, kept, checkpoints, progress, on_cpu, pruned)


def _run_stage(
    model: nn.Module,
    stage: PruneStage | FactorStage | DropBlocksStage,
    tokens: CalibrationTokens | None,
    device: torch.device,
    progress: Progress,
) -> AnyStage:
    inventory = take_inventory(model)
    blocks = inventory.blocks
    if isinstance(stage, DropBlocksStage):
        calibration = None
        if tokens is not None and stage.needs_calibration:
            calibration = DropCalibration(
                lambda: _enter_blocks(model, inventory, tokens, device),
                tokens.batches(TOKENS_PER_BATCH),
            )
        probe = probe_tokens(model)
        return run_drop(model, blocks, stage, calibration, probe, device, progress)
    if isinstance(stage, FactorStage):
        plan = plan_factoring(stage, inventory)
        factorer = BlockFactorer(model, blocks, stage, plan, tokens, device, progress)
        return factorer.run(lambda: _enter_blocks(model, inventory, tokens, device))
    return _prune(model, inventory, stage, tokens, device, progress)


def _prune(
    model: nn.Module,
    inventory: Inventory,
    stage: PruneStage,
    tokens: CalibrationTokens | None,
    device: torch.device,
    progress: Progress,
) -> PruneRecord:
    """Prune, each process on its share of the samples."""
    plan = plan_stage(stage, inventory)
    parallel, device = join_processes(device)
    started = perf_counter()
    gradients: dict[str, Tensor] = {}
    if stage.needs_model_gradient and tokens is not None:
        sites = [entry.site for block in plan for entry in block]
        own = tokens.share(parallel.rank, parallel.size, TOKENS_PER_BATCH)
        progress.begin("gradients of the loss", len(own.samples))
        gradients = model_gradients(model, sites, own, device, parallel, progress.advance)
    seconds = perf_counter() - started
    at_once = tokens_per_batch(device)
    inputs, trace = _enter_blocks(model, inventory, tokens, device, at_once, parallel)
    pruner = BlockPruner(
        inventory.blocks,
        stage,
        plan,
        device,
        progress,
        parallel=parallel,
        model_gradients=gradients,
    )
    record = pruner.run(inputs, trace)
    return replace(record, seconds_calibrating=record.seconds_calibrating + seconds)


def _enter_blocks(
    model: nn.Module,
    inventory: Inventory,
    tokens: CalibrationTokens | None,
    device: torch.device,
    at_once: int = TOKENS_PER_BATCH,
    parallel: Parallel | None = None,
) -> tuple[BlockInputs | None, Trace | None]:
    """The inputs of block 0, and how the model uses its blocks.

    They are in batches of `at_once` tokens; with `parallel`, those of this process's share.

    Raises:
        SecateurError: there are fewer samples than processes, or activations are not finite.
    """
    if tokens is None:
        return None, None
    own = tokens
    if parallel is not None:
        own = tokens.share(parallel.rank, parallel.size, at_once)
    blocks = inventory.blocks
    linears = {site.name: site.module for site in inventory.all_sites if site.expert is None}
    trace = trace_blocks(model, blocks, linears, tokens.samples[0].unsqueeze(0))
    inputs = capture_inputs(model, blocks, trace, own, at_once, device)
    return replace(inputs, num_samples=len(tokens.samples), spans=tokens.spans), trace
