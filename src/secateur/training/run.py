"""One training from beginning to end: prepare the model, train, keep the right weights, tell."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from secateur.errors import SecateurError
from secateur.models.swap import unpack_layers
from secateur.progress import Progress
from secateur.recipe import Training
from secateur.report.training_record import DataRecord, Ending, TrainingRun
from secateur.training.adapters import Adapters, add_adapters, check_adapters, merge_adapters
from secateur.training.callbacks import (
    EvaluateAtEnd,
    KeepZeros,
    Over,
    StopWhenOver,
    TellProgress,
)
from secateur.training.checkpoints import CheckpointFolder
from secateur.training.curve import curve
from secateur.training.data import TrainingData
from secateur.training.data.streamed import EndlessPasses, StreamedWindows
from secateur.training.evaluate import held_out_loss
from secateur.training.objective import Objective
from secateur.training.precision import restore, widen
from secateur.training.pruned_weights import PrunedWeights, pruned_parameters
from secateur.training.sharded import is_sharded, make_whole, meta_copy
from secateur.training.trained import only_trained
from secateur.training.trainer import Diverged, OptimizerState, RecoveryTrainer


@dataclass(frozen=True)
class TrainingTexts:
    """What is trained on, and what the loss is measured on."""

    train: TrainingData
    held_out: TrainingData

    def to_record(self) -> DataRecord:
        """For the report."""
        return DataRecord(
            source=self.train.source,
            num_windows=self.train.num_windows,
            max_seq_length=self.held_out.max_seq_length,
            tokens_sha256=self.train.sha256,
            held_out_source=self.held_out.source,
            num_held_out_windows=self.held_out.num_windows,
            remarks=self.train.remarks,
        )


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training, beside the model itself."""

    run: TrainingRun
    optimizer_state: OptimizerState = field(default_factory=dict)


def run_training(
    model: nn.Module,
    options: Training,
    learning_rate: float,
    texts: TrainingTexts,
    trained: Sequence[str] | Adapters,
    place: CheckpointFolder,
    progress: Progress,
    *,
    objective: Objective | None = None,
    carried: OptimizerState | None = None,
    on_cpu: bool = False,
    task: str = "train",
    known_pruned: Collection[str] = (),
) -> TrainingResult:
    """Train part of a model in place, by transformers' Trainer.

    Works under `torchrun` and `accelerate launch` (DDP, FSDP2) with nothing more said here. Weights
    are fp32 meanwhile and come back in their own dtype; zeros of pruned matrices stay zero; 2:4
    layers end in canonical form.

    Args:
        model: a causal language model.
        options: how long and how.
        learning_rate: the peak.
        texts: windows of `options.max_seq_length` tokens.
        trained: names of the parameters to move, or adapters to train and merge.
        place: of checkpoints; claimed by the caller.
        progress: told after each step.
        objective: what is minimised; by default cross-entropy.
        carried: AdamW's moments of an earlier round, by parameter; None if none are carried from
            round to round.
        on_cpu: leave a GPU unused.
        task: its name for `progress`.
        known_pruned: see `pruned_parameters`.

    Returns:
        the record and the optimizer's moments.

    Raises:
        SecateurError: adapters would fill pruned matrices, a library is not installed, moments are
            to be carried but weights are sharded, or the loss is no longer finite and there is no
            checkpoint to go back to: the model then has the weights of the step that broke it.
    """
    unpack_layers(model)
    pruned = pruned_parameters(model, known_pruned)
    if isinstance(trained, Adapters):
        check_adapters(trained, pruned)
    was_training, home = model.training, next(model.parameters()).device
    dtypes = widen(model)
    try:
        with (
            torch.enable_grad(),
            _settings_as_they_are(model, options),
            _trainable(model, trained, options.seed) as (trainable, num_trained),
        ):
            arguments = _arguments(options, learning_rate, texts.train, place, on_cpu)
            trainer = RecoveryTrainer(
                model=trainable,
                args=arguments,
                train_dataset=_as_trained(texts.train),
                eval_dataset=texts.held_out.dataset,
                callbacks=_callbacks(options, arguments, PrunedWeights(pruned), progress, task),
                objective=(objective or Objective()).on(arguments.device),
                carried=carried,
            )
            trainer.remove_callback(PrinterCallback)
            if carried is not None and trainer.is_fsdp_enabled:
                raise SecateurError(
                    "optimizer carried needs weights that are not sharded (FSDP), whose moments "
                    "cannot be given to another round: give optimizer restarted"
                )
            plain = meta_copy(model) if trainer.is_fsdp_enabled else None
            before = held_out_loss(trainable, texts.held_out, options.batch_size)
            ending, note = _train(trainer, place, options)
            moments = trainer.optimizer_state()
            if plain is not None and is_sharded(model):
                make_whole(model, plain)
    finally:
        restore(model, dtypes)
        model.train(was_training)
    after = held_out_loss(model, texts.held_out, options.batch_size)
    model.to(home)
    run = TrainingRun(
        data=texts.to_record(),
        points=curve(trainer.state.log_history, before),
        num_trained_parameters=num_trained,
        num_steps=trainer.state.global_step,
        num_tokens=trainer.state.num_input_tokens_seen,
        seconds=max([0.0, *(entry["step_seconds"] for entry in trainer.state.log_history)]),
        loss_before=before,
        loss_after=after,
        kept_step=trainer.kept_step,
        ending=ending,
        note=note,
    )
    return TrainingResult(run, moments)


@contextmanager
def _trainable(
    model: nn.Module, trained: Sequence[str] | Adapters, seed: int
) -> Iterator[tuple[nn.Module, int]]:
    """The module to train and how many values move; adapters are merged at the end."""
    if not isinstance(trained, Adapters):
        with only_trained(model, trained) as num_trained:
            yield model, num_trained
        return
    with only_trained(model, ()):
        adapted = add_adapters(model, trained, seed)
        moved = [item for item in adapted.parameters() if item.requires_grad]
        try:
            yield adapted, sum(item.numel() for item in moved)
        finally:
            merge_adapters(adapted)


@contextmanager
def _settings_as_they_are(model: nn.Module, options: Training) -> Iterator[None]:
    """The Trainer leaves the key-value cache off and the checkpointing of activations on."""
    config: Any = getattr(model, "config", None)
    saved = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if saved is not None:
            config.use_cache = saved
        if options.gradient_checkpointing:
            new, old = "activation_checkpointing_disable", "gradient_checkpointing_disable"
            getattr(model, new if hasattr(model, new) else old)()


def _arguments(
    options: Training,
    learning_rate: float,
    data: TrainingData,
    place: CheckpointFolder,
    on_cpu: bool,
) -> TrainingArguments:
    on_cpu = on_cpu or not torch.cuda.is_available()
    can_bf16 = not on_cpu and torch.cuda.is_bf16_supported()
    try:
        arguments = TrainingArguments(
            output_dir=str(place.path),
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            gradient_accumulation_steps=options.gradient_accumulation,
            **_checkpointing(options.gradient_checkpointing),
            optim="adamw_torch",
            adam_beta2=0.95,
            learning_rate=learning_rate,
            lr_scheduler_type=options.schedule
            if options.schedule != "constant"
            else "constant_with_warmup",
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            bf16=options.precision == "bfloat16" or (options.precision == "auto" and can_bf16),
            use_cpu=on_cpu,
            seed=options.seed,
            eval_strategy="steps",
            eval_steps=options.eval_steps,
            prediction_loss_only=True,
            save_strategy="steps",
            save_steps=options.eval_steps,
            save_total_limit=2,
            load_best_model_at_end=options.keep_best,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_strategy="steps",
            logging_steps=min(10, options.eval_steps),
            logging_nan_inf_filter=False,
            include_num_input_tokens_seen="all",
            dataloader_pin_memory=not on_cpu,
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to="none",
        )
    except ImportError as error:
        raise SecateurError(
            f"training needs accelerate, which is not installed: pip install 'secateur[recover]' "
            f"({error})"
        ) from None
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs: torchrun, not DataParallel
    arguments.max_steps = num_steps(arguments, options, data)
    arguments.warmup_steps = math.ceil(options.warmup * arguments.max_steps)
    return arguments


def _checkpointing(wanted: bool) -> dict[str, bool]:
    """The argument under its name in this version of transformers."""
    new, old = "activation_checkpointing", "gradient_checkpointing"
    names = TrainingArguments.__dataclass_fields__
    return {new if new in names else old: True} if wanted else {}


def tokens_per_step(arguments: TrainingArguments, options: Training) -> int:
    """Tokens of one optimizer step over all processes; the last one of a pass may have fewer."""
    windows: int = options.batch_size * options.gradient_accumulation * arguments.world_size
    return windows * options.max_seq_length


def num_steps(arguments: TrainingArguments, options: Training, data: TrainingData) -> int:
    """Optimizer steps that see `num_tokens` tokens, or the data `epochs` times.

    Each pass over the data ends with a step on what is left, which may be less than a whole one;
    passes over a stream follow one another without.
    """
    if options.num_tokens is None:
        windows = math.ceil(options.epochs * data.num_windows)
    else:
        windows = math.ceil(options.num_tokens / options.max_seq_length)
    in_step = tokens_per_step(arguments, options) // options.max_seq_length
    if data.is_streamed:
        return math.ceil(windows / in_step)
    passes, rest = divmod(windows, data.num_windows)
    return passes * math.ceil(data.num_windows / in_step) + math.ceil(rest / in_step)


def _as_trained(data: TrainingData) -> Dataset[dict[str, Tensor]]:
    windows = data.dataset
    return EndlessPasses(windows) if isinstance(windows, StreamedWindows) else windows


def _callbacks(
    options: Training,
    arguments: TrainingArguments,
    pruned: PrunedWeights,
    progress: Progress,
    task: str,
) -> list[TrainerCallback]:
    return [
        KeepZeros(pruned),
        EvaluateAtEnd(),
        TellProgress(progress, task, tokens_per_step(arguments, options)),
        StopWhenOver(options.patience),
    ]


def _train(
    trainer: RecoveryTrainer, place: CheckpointFolder, options: Training
) -> tuple[Ending, str]:
    """Train; go back to the last good weights if numbers stop being finite."""
    last = place.last_checkpoint() if place.resume else None
    try:
        trainer.train(resume_from_checkpoint=last)
    except Over:
        if options.keep_best and trainer.state.best_model_checkpoint is not None:
            trainer.load_weights(trainer.state.best_model_checkpoint)
    except Diverged as error:
        good = trainer.state.best_model_checkpoint if options.keep_best else None
        good = good or place.last_checkpoint()
        if good is None:
            raise SecateurError(
                f"training diverged: {error}, before the first checkpoint. Nothing was kept; give "
                "a lower learning_rate, or a longer warmup"
            ) from None
        trainer.load_weights(good)
        return "diverged", (
            f"training diverged: {error}; the weights of step {trainer.kept_step} were kept. Give "
            "a lower learning_rate, or a longer warmup"
        )
    if trainer.state.global_step < trainer.state.max_steps:
        return "early", f"no better loss in {options.patience} evaluations"
    return "finished", ""
