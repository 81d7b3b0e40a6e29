"""transformers' Trainer with our loss, our guard against divergence and our history."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from secateur.errors import SecateurError
from secateur.training.loss import IGNORED, window_losses
from secateur.training.objective import Objective
from secateur.training.pruned_weights import local_values

OptimizerState = Mapping[nn.Parameter, dict[str, Any]]


class Diverged(Exception):
    """A loss or a weight is no longer a finite number."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite after {step} steps")
        self.step = step


class _StepsClock:
    """Seconds of training steps, without evaluations and checkpoints."""

    def __init__(self) -> None:
        self._before = 0.0
        self._running_since: float | None = None
        self._stopped_at: float | None = None

    def begin(self, history: Sequence[Mapping[str, float]]) -> None:
        """Count on from what an earlier run logged; nothing if it runs already."""
        if self._running_since is None:
            logged = [entry["step_seconds"] for entry in history if "step_seconds" in entry]
            self._before = max([*logged, 0.0])
            self._running_since = perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens meanwhile."""
        if self._stopped_at is not None:
            yield
            return
        self._stopped_at = perf_counter()
        try:
            yield
        finally:
            if self._running_since is not None:
                self._running_since += perf_counter() - self._stopped_at
            self._stopped_at = None

    def seconds(self) -> float:
        """So far; while it is paused, up to then."""
        if self._running_since is None:
            return self._before
        now = perf_counter() if self._stopped_at is None else self._stopped_at
        return self._before + now - self._running_since


class RecoveryTrainer(Trainer):  # type: ignore[misc]
    """Trains by an `Objective`, and stops where numbers stop being finite.

    Evaluation loss is the mean over windows of each window's mean cross-entropy, whatever is
    minimised: figures of different trainings can be compared.
    """

    def __init__(
        self, *, objective: Objective, carried: OptimizerState | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._objective = objective
        self._carried = carried or {}
        self._clock = _StepsClock()
        self._went_back_to: str | None = None
        self._held_out: list[Tensor] = []  # of an evaluation: losses of windows, by batch
        # Our loss is divided by the predictions of the whole step, as models' own losses are.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Batches of a step, and how many predictions our loss counts in them on all processes.

        The first token of a window is not predicted, whatever the Trainer thinks of a model's loss.
        """
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        if counted is None or not batches:
            return batches, counted
        here = sum((batch["labels"][..., 1:] != IGNORED).sum() for batch in batches)
        total = torch.as_tensor(here, device=device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            total = self.accelerator.gather(total).sum()
        return batches, total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss in training; in evaluation the mean loss of the windows."""
        if not model.training:
            rest = {name: value for name, value in inputs.items() if name != "labels"}
            logits = model(**rest, use_cache=False).logits
            losses = window_losses(logits, inputs["labels"])
            self._held_out.append(self.accelerator.gather_for_metrics(losses))
            return (losses.mean(), {"logits": logits}) if return_outputs else losses.mean()
        loss = self._objective.loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {}) if return_outputs else loss

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """One batch forward and backward.

        Raises:
            Diverged: on every process, if the loss of one is not finite; no weight was moved then.
        """
        self._clock.begin(self.state.log_history)
        loss: Tensor = super().training_step(*arguments, **options)
        if self._any_process(not bool(loss.isfinite())):
            raise Diverged(self.state.global_step, "the loss")
        return loss

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Save, unless numbers are not finite: then the checkpoint before stays the last one."""
        measured = [entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry]
        if measured and not math.isfinite(measured[-1]):
            raise Diverged(self.state.global_step, "the loss on held-out text")
        moved = (local_values(p) for p in self.model.parameters() if p.requires_grad)
        if self._any_process(not all(bool(values.isfinite().all()) for values in moved)):
            raise Diverged(self.state.global_step, "a weight")
        with self._clock.paused():
            super()._save_checkpoint(*arguments, **options)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write a plain model's weights under the very names that they have in memory.

        `save_pretrained` would write the experts of some families as they were before they were
        fused; the Trainer reads such names back without a match, and keeps what it has.
        """
        if output_dir is None or state_dict is not None or not self._holds_plain_model():
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_model(self.model, str(folder / SAFE_WEIGHTS_NAME))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks weights; of tied ones it holds one.

        Raises:
            SecateurError: names one that is missing.
        """
        if not self._holds_plain_model():
            super()._issue_warnings_after_load(load_result)
            return
        missing, state = set(load_result.missing_keys), self.model.state_dict()
        held = {item.data_ptr() for name, item in state.items() if name not in missing}
        lost = [name for name in sorted(missing) if state[name].data_ptr() not in held]
        if lost or load_result.unexpected_keys:
            name = (lost or load_result.unexpected_keys)[0]
            raise SecateurError(
                f"the checkpoint is not of the model that is trained: {name} is only in one of "
                "them; train anew, without resuming, or resume with the old recipe"
            )

    def _holds_plain_model(self) -> bool:
        """Neither sharded nor with adapters beside it."""
        return isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The Trainer's, but every window counts once.

        The Trainer takes the mean of a process's batch for the loss of each of its windows, where
        there are several processes also of those that only fill up the last batch.
        """
        self._held_out = []
        output = super().evaluation_loop(*arguments, **options)
        output.metrics["eval_loss"] = float(torch.cat(self._held_out).double().mean())
        return output

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The mean loss of the held-out windows, while the clock of steps stands still."""
        with self._clock.paused():
            metrics: dict[str, float] = super().evaluate(*arguments, **options)
        return metrics

    def _any_process(self, here: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """The optimizer, with moments that an earlier round left for the same parameters."""
        optimizer = super().create_optimizer(*arguments, **options)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._carried:
                    optimizer.state[parameter] = self._carried[parameter]
        return optimizer

    def optimizer_state(self) -> OptimizerState:
        """AdamW's moments by parameter, to be carried into another round."""
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        return dict(inner.state)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Add the seconds that steps took, those before an interruption included."""
        logs["step_seconds"] = self._clock.seconds()
        super().log(logs, *arguments, **options)

    def load_weights(self, checkpoint: str) -> None:
        """Weights of a checkpoint into the model, wrapped or not."""
        self._went_back_to = self.state.best_model_checkpoint = checkpoint
        self._load_best_model()

    @property
    def kept_step(self) -> int:
        """The step whose weights the model has after training."""
        kept = self._went_back_to
        if kept is None and self.args.load_best_model_at_end:
            kept = self.state.best_model_checkpoint
        return int(kept.rpartition("-")[2]) if kept else int(self.state.global_step)
