"""The recover stage: train part of a compressed model until its quality is back."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import nn

from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.device import input_embedding
from secateur.models.swap import unpack_layers
from secateur.progress import Progress
from secateur.recipe import RecoverStage
from secateur.report.training_record import RecoverRecord, TrainingRun
from secateur.training.adapters import Adapters, check_adapters, require_peft
from secateur.training.checkpoints import CheckpointFolder
from secateur.training.loss import matching_places
from secateur.training.objective import Objective
from secateur.training.pruned_weights import pruned_parameters
from secateur.training.run import TrainingTexts, run_training
from secateur.training.trained import (
    blocks_near_cuts,
    head_and_last_blocks,
    linear_modules,
    linear_parameters,
    mlp_parameters,
)


@dataclass(frozen=True)
class DenseModel:
    """What a recovery is measured against, and learns from if it asks for that."""

    num_blocks: int
    loss: float | None = None
    """On the held-out windows."""
    teacher: nn.Module | None = None
    """Kept only where it is learnt from."""
    teacher_blocks: tuple[int, ...] = ()
    """Indices, among the dense model's blocks, of those that the teacher has: all, if it is it."""
    note: str = ""
    """Said in the report where it is not there."""


def check_recover(
    model: nn.Module,
    stage: RecoverStage,
    kept: Sequence[int],
    before: int,
    known_pruned: Collection[str] = (),
) -> None:
    """Raise SecateurError if the stage finds nothing to train, or must not train it.

    Args:
        model: as the stage will find it, or nearly so.
        stage: the options.
        kept: indices, among the dense model's blocks, of those that there are.
        before: blocks of the dense model.
        known_pruned: see `pruned_parameters`.
    """
    if stage.method == "lora":
        require_peft()
    chosen = choose_trained(model, stage, kept, before)
    if isinstance(chosen, Adapters):
        check_adapters(chosen, pruned_parameters(model, known_pruned))


def choose_trained(
    model: nn.Module, stage: RecoverStage, kept: Sequence[int], before: int
) -> tuple[str, ...] | Adapters:
    """What the stage's method trains. Packed 2:4 layers become canonical: only so they can train.

    Raises:
        SecateurError: there is nothing of the kind.
    """
    unpack_layers(model)
    blocks: Sequence[int] = range(len(find_blocks(model)))
    if stage.near_cut is not None:
        blocks = blocks_near_cuts(kept, before, stage.near_cut)
    if stage.method == "gates":
        return mlp_parameters(model, blocks)
    if stage.method == "linears":
        return linear_parameters(model, blocks)
    if stage.method == "lora":
        return Adapters(linear_modules(model, blocks), stage.lora_rank, stage.lora_alpha)
    if stage.method == "head_and_last_blocks":
        return head_and_last_blocks(model, stage.last_blocks)
    return tuple(name for name, item in model.named_parameters() if item.is_floating_point())


def run_recover(
    model: nn.Module,
    stage: RecoverStage,
    texts: TrainingTexts,
    dense: DenseModel,
    kept: Sequence[int],
    place: CheckpointFolder,
    progress: Progress,
    on_cpu: bool = False,
    known_pruned: Collection[str] = (),
) -> RecoverRecord:
    """Train a model in place.

    Args:
        model: compressed.
        stage: which part, and how.
        texts: what is trained on.
        dense: the model before it was compressed.
        kept: indices, among the dense model's blocks, of those that there are.
        place: of checkpoints; claimed.
        progress: told after each step.
        on_cpu: leave a GPU unused.
        known_pruned: see `pruned_parameters`.

    Raises:
        SecateurError: nothing can be trained, or the training diverged at once.
    """
    started = perf_counter()
    rate = stage.learning_rate(input_embedding(model).shape[1])
    result = run_training(
        model,
        stage.training,
        rate,
        texts,
        choose_trained(model, stage, kept, dense.num_blocks),
        place,
        progress,
        objective=_objective(stage, dense, kept),
        on_cpu=on_cpu,
        task=f"recover by {stage.method.replace('_', ' ')}",
        known_pruned=known_pruned,
    )
    return RecoverRecord(
        method=stage.method,
        learning_rate=rate,
        minimised=stage.training.minimised,
        run=result.run,
        dense_loss=dense.loss,
        warnings=(*filter(None, [dense.note]), *_warnings(result.run)),
        seconds=perf_counter() - started,
    )


def _objective(stage: RecoverStage, dense: DenseModel, kept: Sequence[int]) -> Objective:
    options = stage.training
    if not options.needs_teacher:
        return Objective()
    if dense.teacher is None:
        raise SecateurError("expected the dense model to learn from, but there is none")
    return Objective(
        teacher=dense.teacher,
        distillation_weight=options.distillation_weight if options.loss == "distillation" else 0.0,
        temperature=options.temperature,
        block_weight=options.block_weight,
        teacher_places=_teacher_places(kept, dense) if options.block_weight > 0.0 else (),
    )


def _teacher_places(kept: Sequence[int], dense: DenseModel) -> tuple[int, ...]:
    blocks = dense.teacher_blocks
    return matching_places([blocks.index(block) for block in kept], len(blocks))


def _warnings(run: TrainingRun) -> tuple[str, ...]:
    warnings = [run.note] if run.ending == "diverged" else []
    if run.loss_after >= run.loss_before:
        warnings.append(
            f"training did not help: the loss on held-out text went from {run.loss_before:.4f} to "
            f"{run.loss_after:.4f}"
        )
    return tuple(warnings)
