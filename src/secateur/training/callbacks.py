"""What happens beside the steps of a training: zeros are kept, progress is told."""

import math
from time import perf_counter
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from secateur.progress import Progress
from secateur.training.pruned_weights import PrunedWeights


class KeepZeros(TrainerCallback):  # type: ignore[misc]
    """Pruned weights are zero again after every step; checked at evaluations and checkpoints."""

    def __init__(self, pruned: PrunedWeights) -> None:
        self._pruned = pruned

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **rest: Any,
    ) -> None:
        """Note the zeros of what this process holds."""
        self._pruned.begin(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """After the step: the optimizer knows nothing of zeros."""
        self._pruned.apply()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """What is measured is what will be saved."""
        self._pruned.check()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """A checkpoint holds the zeros."""
        self._pruned.check()


class EvaluateAtEnd(TrainerCallback):  # type: ignore[misc]
    """The last step is evaluated too, whatever its number: it may be the best."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Ask for it, and for the training loss at each evaluation.

        Steps that were not logged before a checkpoint would be missing after it is resumed.
        """
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
            control.should_save = True
        if control.should_evaluate:
            control.should_log = True


class Over(Exception):
    """A training that was resumed had come to its end already: not one step is left."""


class StopWhenOver(TrainerCallback):  # type: ignore[misc]
    """Stops where the held-out loss no longer falls, and before the first step if none is left.

    Both follow from what was logged alone, so that a resumed training stops where it would have
    stopped: the Trainer's own early stopping begins to count anew, and its loop takes a step before
    it looks whether one is left.
    """

    def __init__(self, patience: int | None) -> None:
        """`patience`: evaluations without a better loss; None: any number."""
        self._patience = patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Raise `Over` if there is nothing left to do."""
        if state.global_step >= state.max_steps or self._is_out_of_patience(state):
            raise Over

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Stop after this step if patience is exhausted."""
        if self._is_out_of_patience(state):
            control.should_training_stop = True

    def _is_out_of_patience(self, state: TrainerState) -> bool:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        if self._patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self._patience


class TellProgress(TrainerCallback):  # type: ignore[misc]
    """A step of the bar for each optimizer step, with loss and speed."""

    def __init__(self, progress: Progress, task: str, tokens_per_step: int) -> None:
        self._progress = progress
        self._task = task
        self._tokens_per_step = tokens_per_step
        self._held_out = ""
        self._train = ""
        self._started = perf_counter()
        self._first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Begin the task, with the steps that a resumed training has behind it."""
        self._progress.begin(self._task, state.max_steps)
        self._first, self._started = state.global_step, perf_counter()
        for _ in range(state.global_step):
            self._progress.advance("resumed")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **rest: Any,
    ) -> None:
        """Remember the latest losses."""
        if "loss" in logs:
            self._train = f"loss {logs['loss']:.3f}"
        if "eval_loss" in logs:
            self._held_out = f"held out {logs['eval_loss']:.3f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Move the bar."""
        done = (state.global_step - self._first) * self._tokens_per_step
        speed = done / max(perf_counter() - self._started, 1e-9)
        words = [self._train, self._held_out, f"{speed:,.0f} tokens/s"]
        self._progress.advance("  ".join(word for word in words if word))
