"""Before anything is changed: the texts of training stages, and the dense model they aim at."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.ancestry import Ancestry
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.load import LoadedModel, load_model
from secateur.checkpoint.pattern import pruned_names
from secateur.clock import StepClock
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks, require_context
from secateur.models.device import input_embedding, on_device, vocabulary_size
from secateur.models.swap import compressed_modules
from secateur.recipe import (
    DropBlocksStage,
    FactorStage,
    InheritStage,
    PruneStage,
    Recipe,
    RecoverStage,
    Training,
    TrainingStage,
)
from secateur.report.facts import package_versions
from secateur.settings import read_settings
from secateur.stages.inherit import check_inherit_stage
from secateur.stages.recover import DenseModel, check_recover
from secateur.training.checkpoints import CheckpointFolder, digest
from secateur.training.data import (
    TrainingText,
    hold_out,
    keeps_examples_apart,
    load_held_out,
    load_training_data,
)
from secateur.training.evaluate import held_out_loss
from secateur.training.run import TrainingTexts

# Windows are drawn from this many times the tokens that are trained on, where there are as many: a
# corpus of any size is tokenised only as far as that.
_SURPLUS = 16


@dataclass(frozen=True)
class TrainingPlace:
    """Where trainings keep tokens and checkpoints."""

    checkpoints: Path
    cache: Path | None = None
    """Of tokens; None: as the settings say."""
    resume: bool = False
    on_cpu: bool = False
    """Leave a GPU unused."""


def check_resume(recipe: Recipe) -> None:
    """Refuse to resume where no stage leaves anything behind when it is interrupted.

    Raises:
        SecateurError: no stage trains.
    """
    if not any(isinstance(stage, TrainingStage) for stage in recipe.stages):
        raise SecateurError(
            "resume goes on with training stages, and the recipe has none: leave it out, or "
            "compress by streaming (--stream), which keeps every finished block"
        )


@contextmanager
def training_place(
    output: str | Path | None,
    cache: str | Path | None,
    resume: bool,
    device: str | torch.device | None,
) -> Iterator[TrainingPlace]:
    """Checkpoints lie beside the output, hidden, until it is written; else in a temporary folder.

    `device`: training uses the GPUs that there are unless it is the CPU.

    Raises:
        SecateurError: there is no output to find checkpoints beside.
    """
    if resume and output is None:
        raise SecateurError("resume goes by checkpoints beside the output; give an output")
    cache = None if cache is None else Path(cache)
    on_cpu = device is not None and torch.device(device).type == "cpu"
    if output is not None:
        folder = Path(output).resolve()
        hidden = folder.with_name(f".{folder.name}.training")
        yield TrainingPlace(hidden, cache, resume, on_cpu)
        with suppress(OSError):
            hidden.rmdir()
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield TrainingPlace(Path(scratch), cache, False, on_cpu)


@dataclass(frozen=True)
class PreparedTraining:
    """What a training stage needs beside the model that it will find."""

    texts: TrainingTexts
    dense: DenseModel
    checkpoints: CheckpointFolder
    on_cpu: bool


def prepare_trainings(
    loaded: LoadedModel,
    ancestry: Ancestry,
    recipe: Recipe,
    place: TrainingPlace,
    clock: StepClock,
    calibration_sha256: str = "",
) -> dict[int, PreparedTraining]:
    """Read and tokenise the texts of every training stage, and measure the dense model on them.

    Args:
        loaded: the model as it came in.
        ancestry: of that model.
        recipe: its stages.
        place: where tokens and checkpoints go; checkpoint folders are claimed.
        clock: told of each stage's texts, with what was cut or left out of them.
        calibration_sha256: of the tokens that stages before a training go by; empty if none do.

    Returns:
        by the stage's place in the recipe, from 0.

    Raises:
        SecateurError: a text cannot be read or does not fit the model, the teacher cannot be
            loaded, or checkpoints to resume from are another training's.
    """
    _check_stages(loaded.model, ancestry, recipe)
    stages = {
        number: stage
        for number, stage in enumerate(recipe.stages)
        if isinstance(stage, TrainingStage)
    }
    if stages and loaded.tokenizer is None:
        raise SecateurError("training on text needs the model's tokenizer; give `tokenizer`")
    prepared = {}
    for number, stage in stages.items():
        clock.progress.begin("read training texts", 1)
        with clock.measured("read training texts"):
            prepared[number] = _prepare(loaded, ancestry, number, stage, place)
        # The report says so too, but only once hours were spent on training.
        remarks = prepared[number].texts.train.remarks
        clock.progress.advance("; ".join(filter(None, (*remarks, prepared[number].dense.note))))
    # Only now that nothing can be wrong with any of them is something written.
    for number, training in prepared.items():
        identity = _identity(loaded, recipe, number, training.texts)
        training.checkpoints.claim({**identity, "the calibration": calibration_sha256})
    return prepared


def _check_stages(model: nn.Module, ancestry: Ancestry, recipe: Recipe) -> None:
    """Find what a training stage cannot do, as far as it can be known before earlier stages."""
    will_be_pruned, is_compressed = False, bool(compressed_modules(model))
    most = len(ancestry.kept)  # blocks, however far an inherit stage may grow
    for stage in recipe.stages:
        count = len(ancestry.kept)
        if isinstance(stage, PruneStage):
            will_be_pruned = True
        elif isinstance(stage, FactorStage):
            is_compressed |= stage.writes_factors
        elif isinstance(stage, DropBlocksStage) and stage.granularity == "block":
            # Which blocks a count will drop is not known yet: the last ones stand for them.
            ancestry = ancestry.without(stage.blocks or range(count - (stage.count or 0), count))
            most -= count - len(ancestry.kept)
        elif isinstance(stage, InheritStage):
            check_inherit_stage(stage, count)
            if is_compressed and (stage.start, stage.part) != ("inherited", "both"):
                raise SecateurError(
                    "inherit: compressed layers cannot be initialised anew; give start inherited "
                    "and part both, or a model without them"
                )
            ancestry = ancestry.without(range(stage.blocks, count))
            most = max(stage.blocks, stage.max_blocks or most - 1)
        elif isinstance(stage, RecoverStage):
            if will_be_pruned and stage.method == "lora":
                raise SecateurError(
                    "method lora adds a dense product to each matrix: merging would fill the zeros "
                    "of the prune stage before it. Recover by gates, linears or all"
                )
            if stage.method == "head_and_last_blocks" and stage.last_blocks > most:
                raise SecateurError(
                    f"expected at least {stage.last_blocks} blocks to train, the model has {most} "
                    "by then"
                )
            pruned = pruned_names(ancestry.stages, find_blocks(model).name)
            check_recover(model, stage, ancestry.kept, ancestry.num_dense_blocks, pruned)


def _prepare(
    loaded: LoadedModel,
    ancestry: Ancestry,
    number: int,
    stage: TrainingStage,
    place: TrainingPlace,
) -> PreparedTraining:
    options = stage.training
    require_context(loaded.model, options.max_seq_length)
    texts = load_texts(loaded, options, place.cache)
    dense = DenseModel(ancestry.num_dense_blocks)
    if isinstance(stage, RecoverStage):
        dense = _dense_model(loaded, ancestry, stage, texts, place.on_cpu)
    folder = CheckpointFolder(place.checkpoints / f"stage-{number + 1}", place.resume)
    return PreparedTraining(texts, dense, folder, place.on_cpu)


def _identity(
    loaded: LoadedModel, recipe: Recipe, number: int, texts: TrainingTexts
) -> dict[str, str]:
    """What has to be the same for a training to go on."""
    return {
        "the recipe": digest(*(str(item) for item in recipe.stages[: number + 1])),
        "the model": fingerprint(loaded.model).logits_sha256,
        "the training text": texts.train.sha256,
        "the held-out text": texts.held_out.sha256,
        "versions": digest(str(package_versions())),
        # A step takes a batch from each of them, so that steps are counted otherwise.
        "the number of processes": str(read_settings().world_size),
    }


def load_texts(loaded: LoadedModel, options: Training, cache: Path | None) -> TrainingTexts:
    """The windows to train on and those to measure on.

    Raises:
        SecateurError: a text cannot be read, is too short, or is not of this model's vocabulary.
    """
    tokenizer: Any = loaded.tokenizer
    vocabulary = vocabulary_size(loaded.model)
    text = TrainingText(
        options.data,
        max_seq_length=options.max_seq_length,
        max_tokens=_needed_tokens(options),
        format=options.format,
        pack=options.format == "text" or keeps_examples_apart(loaded.model),
        streaming=options.streaming,
        seed=options.seed,
    )
    data = load_training_data(text, tokenizer, cache, vocab_size=vocabulary)
    if options.evaluation is None:
        return TrainingTexts(*hold_out(data, num_windows=options.held_out, seed=options.seed))
    held_out = load_held_out(
        options.evaluation,
        text,
        tokenizer,
        cache,
        num_windows=options.held_out,
        vocab_size=vocabulary,
    )
    return TrainingTexts(data, held_out)


def _needed_tokens(options: Training) -> int | None:
    """How much of the text is read: a surplus to draw from, since texts begin with a few books."""
    if options.num_tokens is None or options.streaming:
        return None
    return _SURPLUS * options.num_tokens + options.held_out * options.max_seq_length


def _dense_model(
    loaded: LoadedModel,
    ancestry: Ancestry,
    stage: RecoverStage,
    texts: TrainingTexts,
    on_cpu: bool,
) -> DenseModel:
    """The teacher that the stage names, else what the model as it came in was made from, or is.

    Where that is not there, nothing is measured, and the model as it came in is what is left to
    learn from; the report says so.
    """
    source = stage.teacher or ancestry.dense_folder
    model = loaded.model if source is None else _load_teacher(str(source), loaded)
    blocks: Sequence[int] = range(ancestry.num_dense_blocks)
    if len(find_blocks(model)) == len(ancestry.kept):
        blocks = ancestry.kept
    if stage.training.block_weight > 0.0:
        _check_hidden(model, loaded.model, len(blocks))
    loss, missing = None, source is None and ancestry.dense_is_missing
    if not missing:
        with on_device(model, _own_device(on_cpu)):
            loss = held_out_loss(model, texts.held_out, stage.training.batch_size)
    teacher = None
    if stage.training.needs_teacher:
        teacher = copy.deepcopy(model) if model is loaded.model else model
    note = _missing_note(ancestry.dense_source, teacher is not None) if missing else ""
    return DenseModel(ancestry.num_dense_blocks, loss, teacher, tuple(blocks), note)


def _missing_note(source: str, is_learnt_from: bool) -> str:
    instead = ", and what was learnt from is the model as it came in" if is_learnt_from else ""
    return (
        f"the dense model ({source}) is not there: nothing is compared with it{instead}; where it "
        "can be had, name it as `teacher` (--teacher)"
    )


def _check_hidden(teacher: nn.Module, student: nn.Module, num_blocks: int) -> None:
    """Raise SecateurError if a teacher's hidden states cannot be those that blocks are to make."""
    width, found = (input_embedding(model).shape[1] for model in (student, teacher))
    if (len(find_blocks(teacher)), found) != (num_blocks, width):
        raise SecateurError(
            f"block_weight needs a teacher with the dense model's {num_blocks} blocks of width "
            f"{width}, but got one with {len(find_blocks(teacher))} of width {found}"
        )


def _own_device(on_cpu: bool) -> torch.device:
    """The GPU of this process among those that train, or the CPU."""
    if on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", read_settings().rank % torch.cuda.device_count())


def _load_teacher(source: str, loaded: LoadedModel) -> nn.Module:
    model = load_model(source).model
    ours, theirs = map(vocabulary_size, (loaded.model, model))
    if ours != theirs:
        raise SecateurError(
            f"expected a teacher with the model's vocabulary of {ours} tokens, but {source} has "
            f"{theirs}"
        )
    return model
