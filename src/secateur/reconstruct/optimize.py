"""The regional optimizer (Wanda++, arXiv 2503.04992): tune a changed block against the block that
it came from. It knows nothing of pruning: the student may be any module that is called alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import cos, inf, isfinite, nan, pi, sqrt

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.measure import is_finite
from secateur.parallel import Parallel
from secateur.progress import Progress, SilentProgress
from secateur.reconstruct.held_out import split_samples
from secateur.reconstruct.history import History, RoundRecord
from secateur.reconstruct.samples import BlockSamples
from secateur.reconstruct.settings import ReconstructionSettings
from secateur.reconstruct.shares import share_samples, sum_gradients
from secateur_kernels.precision import wide_dtype

Targets = Callable[[Sequence[int]], Tensor]
"""From samples of equal length to what the student should give: [n, length, width], any dtype."""
Masks = Mapping[str, Tensor]
"""By parameter name: bool in the parameter's shape, True = keep."""


def teacher_targets(teacher: nn.Module, samples: BlockSamples) -> Targets:
    """The outputs of a teacher on the same samples, computed whenever they are asked for."""

    def targets(chosen: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return samples.run(teacher, chosen)

    return targets


def stored_targets(outputs: Sequence[Tensor], samples: BlockSamples) -> Targets:
    """Outputs that were kept, by batch, in buffers shaped as the samples' hidden states."""
    return lambda chosen: samples.rows(outputs, chosen)


def optimize(
    student: nn.Module,
    targets: Targets,
    samples: BlockSamples,
    settings: ReconstructionSettings,
    *,
    masks: Masks | None = None,
    project: Callable[[int], Masks] | None = None,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
    parallel: Parallel | None = None,
) -> tuple[History, dict[str, Tensor]]:
    """Tune a block in place.

    Args:
        student: its floating parameters are fp32 or float64 (see `master_weights`); evaluation
            mode is its owner's choice.
        targets: see `teacher_targets` and `stored_targets`.
        samples: the student's inputs. The teacher's may be others.
        settings: what is done. The same settings and data give the same weights.
        masks: which weights stay; the others are zeroed at the start and, where the settings say
            `frozen_mask`, after every step.
        project: prunes anew: given the number of finished rounds, before every round and after
            the last, it returns masks to replace `masks` with. It may look at the student, whose
            weights it need not zero.
        autocast: dtype of products in forward and backward passes; None for the parameters' own.
        progress: told of every round.
        parallel: processes that tune the same student together, each with samples and targets of
            its own, numbered through all of them by rank. They draw the same samples and add up
            their gradients, so that all end with the same weights.

    Returns:
        (history, masks). The student has the weights, and `masks` are the masks, of the best
        round: the lowest held-out error where samples are held out, otherwise the last round with
        finite weights. Every masked weight is zero.

    Raises:
        SecateurError: 16-bit parameters, nothing to train, masks that do not fit, or too few
            samples.
    """
    run = _Optimization(
        student, targets, samples, settings, dict(masks or {}), autocast, parallel or Parallel()
    )
    with _requiring_grad(student, run.trained):
        return run.run(project, progress or SilentProgress())


def too_long_to_tune(length: int) -> str:
    """What to tell of a sample of `length` tokens that does not fit by itself."""
    return (
        f"the device has no memory to tune a block on one sample of {length} tokens; give a "
        "smaller max_seq_length"
    )


class _Optimization:
    def __init__(
        self,
        student: nn.Module,
        targets: Targets,
        samples: BlockSamples,
        settings: ReconstructionSettings,
        masks: dict[str, Tensor],
        autocast: torch.dtype | None,
        parallel: Parallel,
    ) -> None:
        self.student, self.targets, self.samples = student, targets, samples
        self.settings, self.masks, self.autocast = settings, masks, autocast
        self.removed: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.kept_masks: dict[str, Tensor] = {}
        self.parameters = dict(student.named_parameters())
        self.trained = _trained(self.parameters, settings, masks)
        _check_masks(self.parameters, masks)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parallel = parallel
        self.share = share_samples(samples.num_samples, parallel)
        self.held_out, self.training = split_samples(
            self.share.total, samples.spans, settings, self.generator
        )
        wanted = settings.samples_per_round or len(self.training)
        self.per_round = min(wanted, len(self.training))
        steps_per_round = -(-self.per_round // settings.samples_per_step)
        self.num_steps = settings.rounds * steps_per_round
        self.steps_done = 0
        self.tokens_at_once = settings.tokens_per_micro_batch
        self.optimizer = _optimizer([self.parameters[name] for name in self.trained], settings)

    def run(
        self, project: Callable[[int], Masks] | None, progress: Progress
    ) -> tuple[History, dict[str, Tensor]]:
        self._project(project, 0)
        records = [RoundRecord(0, nan, self._held_out_error(), 0)]
        self._keep()
        best_round = 0
        best_error = inf if records[0].held_out_error is None else records[0].held_out_error
        stopped = ""
        progress.begin("reconstruct", self.settings.rounds)
        for number in range(1, self.settings.rounds + 1):
            error = self._round()
            if not isfinite(error) or not self._is_finite():
                stopped = f"round {number} gave weights or losses that are not finite"
                break
            self._project(project, number)
            held_out = self._held_out_error()
            records.append(RoundRecord(number, error, held_out, self.steps_done))
            if held_out is None or held_out < best_error:
                self._keep()
                best_round = number
                best_error = inf if held_out is None else held_out
            progress.advance(f"error {error if held_out is None else held_out:.4f}")
        if stopped or best_round != len(records) - 1:
            self._restore()
        return History(tuple(records), best_round, stopped), self.masks

    def _round(self) -> float:
        """One round of steps; the relative error met on the way."""
        chosen = torch.randperm(len(self.training), generator=self.generator)[: self.per_round]
        order = [self.training[place] for place in chosen.tolist()]
        totals = []
        for start in range(0, len(order), self.settings.samples_per_step):
            totals += self._step(order[start : start + self.settings.samples_per_step])
        return self._error(totals)

    def _step(self, chosen: Sequence[int]) -> list[Tensor]:
        """One step of the optimizer; what `_loss` gave for each micro-batch before it."""
        totals = self._losses(chosen, with_gradients=True)
        sum_gradients([self.parameters[name] for name in self.trained], self.parallel)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * self._rate_share()
        self.optimizer.step()
        self.steps_done += 1
        if self.settings.frozen_mask:
            self._apply_masks()
        return totals

    def _losses(self, chosen: Sequence[int], with_gradients: bool) -> list[Tensor]:
        """What `_loss` gives for each micro-batch; smaller ones where memory is short."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return [
                    self._loss_of(batch, with_gradients) for batch in self._micro_batches(chosen)
                ]
            except torch.OutOfMemoryError:
                # Its traceback keeps tensors alive: on from outside of here.
                pass
            self._halve_micro_batches()

    def _loss_of(self, batch: Sequence[int], with_gradients: bool) -> Tensor:
        with torch.set_grad_enabled(with_gradients):
            loss = self._loss(batch)
            if with_gradients:
                loss[0].backward()
        # Left on the device: to read a number there would wait for it.
        return loss.detach()

    def _halve_micro_batches(self) -> None:
        longest = max(self.samples.length(sample) for sample in range(self.samples.num_samples))
        if self.tokens_at_once < longest:
            raise SecateurError(too_long_to_tune(longest))
        self.tokens_at_once //= 2

    def _loss(self, batch: Sequence[int]) -> Tensor:
        """[2]: the loss, and what it is relative to."""
        wanted = self.targets(batch)
        device = next(self.student.parameters()).device.type
        casting = torch.autocast(device, dtype=self.autocast) if self.autocast else nullcontext()
        with casting:
            output = self.samples.run(self.student, batch)
        wide = wide_dtype(output.dtype)
        target = wanted.to(output.device, wide)
        squares = (output.to(wide) - target).square()
        reference = target.square()
        if self.settings.loss == "squared":
            return torch.stack((squares.sum(), reference.sum()))
        per_token = squares.sum(dim=-1) / reference.sum(dim=-1).clamp_min(torch.finfo(wide).tiny)
        return torch.stack((per_token.sum(), torch.ones_like(per_token).sum()))

    def _rate_share(self) -> float:
        """Of the full learning rate, by the schedule."""
        if self.settings.schedule == "constant":
            return 1.0
        warmup = self.settings.warmup * self.num_steps
        if self.steps_done < warmup:
            return (self.steps_done + 1) / (warmup + 1)
        through = (self.steps_done - warmup) / (self.num_steps - warmup)
        return 0.5 * (1.0 + cos(pi * through))

    def _held_out_error(self) -> float | None:
        if not self.held_out:
            return None
        return self._error(self._losses(self.held_out, with_gradients=False))

    def _micro_batches(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """The samples of this process among those chosen, as they are run together."""
        return self.samples.micro_batches(self.share.own(chosen), self.tokens_at_once)

    def _error(self, totals: Sequence[Tensor]) -> float:
        """Root of loss over reference, summed over `_loss`'s pairs of all processes."""
        pairs = [total.double() for total in totals] or [torch.zeros(2, dtype=torch.float64)]
        sums = self.parallel.gather(torch.stack(pairs).sum(dim=0).tolist())
        loss, reference = (sum(column) for column in zip(*sums, strict=True))
        return sqrt(loss / reference) if reference else 0.0

    def _project(self, project: Callable[[int], Masks] | None, finished: int) -> None:
        if project is not None:
            self.masks = dict(project(finished))
            _check_masks(self.parameters, self.masks)
        self.removed = {name: ~mask for name, mask in self.masks.items()}
        self._apply_masks()

    def _apply_masks(self) -> None:
        for name, removed in self.removed.items():
            self.parameters[name].data.masked_fill_(removed, 0.0)

    def _is_finite(self) -> bool:
        return all(is_finite(self.parameters[name].detach()) for name in self.trained)

    def _keep(self) -> None:
        """Weights and masks, in the memory of those that were kept before."""
        for name in {*self.trained, *self.masks}:
            value = self.parameters[name].detach()
            if name in self.kept:
                self.kept[name].copy_(value)
            else:
                self.kept[name] = value.clone()
        self.kept_masks = dict(self.masks)

    def _restore(self) -> None:
        for name, value in self.kept.items():
            self.parameters[name].data.copy_(value)
        self.masks = self.kept_masks


def _trained(
    parameters: Mapping[str, nn.Parameter], settings: ReconstructionSettings, masks: Masks
) -> list[str]:
    floating = {n: p for n, p in parameters.items() if p.is_floating_point()}
    narrow = [name for name, parameter in floating.items() if parameter.element_size() < 4]
    if narrow:
        raise SecateurError(
            f"expected parameters in fp32, got {floating[narrow[0]].dtype} in {narrow[0]}: small "
            "steps would be lost; use master_weights"
        )
    vectors_too = settings.trained == "matrices_and_vectors"
    chosen = [
        name
        for name, parameter in floating.items()
        if settings.trained == "all" or name in masks or (vectors_too and parameter.ndim == 1)
    ]
    if not chosen:
        raise SecateurError(
            f"expected something to train, but trained = {settings.trained!r} matches no parameter"
        )
    return chosen


def _check_masks(parameters: Mapping[str, nn.Parameter], masks: Masks) -> None:
    for name, mask in masks.items():
        shape = list(parameters[name].shape) if name in parameters else "no such parameter"
        if list(mask.shape) != shape or mask.dtype != torch.bool:
            raise SecateurError(
                f"expected a bool mask in the shape of {name} ({shape}), "
                f"got {mask.dtype} {list(mask.shape)}"
            )


def _optimizer(
    parameters: Sequence[nn.Parameter], settings: ReconstructionSettings
) -> torch.optim.Optimizer:
    rate = settings.learning_rate
    groups = [
        {"params": [parameter], "full_rate": rate * _unit_of_rate(parameter, settings)}
        for parameter in parameters
    ]
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate)
    # One pass over weights and moments, without temporary ones; on a CPU it rounds otherwise.
    fused = True if all(parameter.is_cuda for parameter in parameters) else None
    return torch.optim.Adam(groups, lr=rate, betas=(0.9, settings.second_moment), fused=fused)


def _unit_of_rate(parameter: nn.Parameter, settings: ReconstructionSettings) -> float:
    """What a learning rate of 1 is for this parameter."""
    if settings.scale == "absolute":
        return 1.0
    last = parameter.shape[-1] if parameter.ndim else 1
    if parameter.ndim < 2:
        return 1.0 / last
    value = parameter.detach()
    count = int(torch.count_nonzero(value))
    squares = float(value.square().sum(dtype=torch.float64))
    return sqrt(squares / count / last) if count else 0.0


@contextmanager
def _requiring_grad(student: nn.Module, trained: Sequence[str]) -> Iterator[None]:
    """Only the trained parameters ask for gradients; afterwards as before, and no gradients."""
    parameters = dict(student.named_parameters())
    saved = {name: parameter.requires_grad for name, parameter in parameters.items()}
    chosen = set(trained)
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(saved[name])
            parameter.grad = None
