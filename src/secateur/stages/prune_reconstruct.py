"""The regional optimizer in the prune stage: tune each pruned block against its dense outputs."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.parallel import Parallel
from secateur.progress import Progress
from secateur.recipe.reconstruction import Reconstruction
from secateur.reconstruct import (
    BlockSamples,
    Half,
    History,
    ReconstructionSettings,
    find_halves,
    master_weights,
    optimize,
    silenced,
    split_samples,
    stored_targets,
    too_long_to_tune,
)
from secateur.report.record import TuningPart, TuningRound

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Tuned:
    """What tuning did to a block."""

    rounds: tuple[TuningRound, ...]
    masks: Masks
    """By parameter name within the block; not those given where they were chosen anew."""
    note: str


@dataclass(frozen=True)
class HalfTargets:
    """A block's two halves, and what the first one gave while the block was dense."""

    attention: Half
    mlp: Half
    outputs: tuple[Tensor, ...]
    """By batch: [batch, length, width]."""


def block_samples(inputs: BlockInputs, index: int) -> BlockSamples:
    """The inputs of block `index`, sample by sample, in the buffers that hold them."""
    return BlockSamples(inputs.hidden, tuple(calls[index] for calls in inputs.calls), inputs.spans)


def check_tuning(
    tuning: Reconstruction,
    blocks: BlockList,
    inputs: BlockInputs,
    opened: Callable[[int], AbstractContextManager[None]],
    looked_at: int,
) -> None:
    """Find what would stop the optimizer, before any block is changed.

    Args:
        tuning: with every field said.
        blocks: of the model.
        inputs: of block 0.
        opened: makes a block's weights be there.
        looked_at: so many blocks are run to find their halves.

    Raises:
        SecateurError: too few samples to hold some out, none apart from these, blocks that share
            parameters, or halves asked for where blocks do not have them one after the other.
    """
    share, count = tuning.held_out or 0.0, inputs.num_samples
    if share and not 0 < round(share * count) < count:
        raise SecateurError(
            f"reconstruct: held_out {share:g} of {count} calibration samples leaves none to hold "
            "out or none to train on; use more samples"
        )
    for index in range(len(blocks)):
        settings = _settings(tuning, index)
        generator = torch.Generator().manual_seed(settings.seed)
        split_samples(count, inputs.spans, settings, generator)
    _check_shared(blocks)
    if tuning.granularity == "halves":
        for index, block in enumerate(list(blocks.modules)[:looked_at]):
            with opened(index):
                # What enters block 0 stands for what will enter this one: only the form matters.
                find_halves(block, block_samples(inputs, index))


def _check_shared(blocks: BlockList) -> None:
    owners: dict[int, int] = {}
    for index, block in enumerate(blocks.modules):
        for name, parameter in block.named_parameters():
            owner = owners.setdefault(id(parameter), index)
            if owner != index:
                raise SecateurError(
                    f"reconstruct: {blocks.block_name(index)} shares {name} with "
                    f"{blocks.block_name(owner)}, so that it cannot be tuned alone"
                )


def half_targets(block: nn.Module, samples: BlockSamples) -> HalfTargets:
    """Run the attention half of a block that is still dense."""
    attention, mlp = find_halves(block, samples)
    with silenced(block, mlp):
        return HalfTargets(attention, mlp, _outputs(block, samples))


def tune_block(
    block: nn.Module,
    index: int,
    tuning: Reconstruction,
    samples: BlockSamples,
    dense_outputs: Sequence[Tensor],
    halves: HalfTargets | None,
    masks: Masks,
    project: Callable[[], Masks] | None,
    progress: Progress,
    parallel: Parallel,
) -> Tuned:
    """Tune a pruned block in place; its dtypes stay, and every masked weight stays zero.

    Args:
        block: pruned.
        index: of the block; each block has draws of its own.
        tuning: with every field said.
        samples: what enters the block.
        dense_outputs: by batch, what it gave for them while it was dense.
        halves: see `half_targets`; None to tune the block as a whole.
        masks: by parameter name, in the parameter's shape.
        project: chooses masks anew from the weights as they are; None to keep them.
        progress: moved on by every round.
        parallel: processes that tune the same block, each with samples and targets of its own.
    """
    settings = _settings(tuning, index)
    products = products_dtype(tuning, _device_type(block), _floating_dtypes(block))
    rounds: list[TuningRound] = []
    notes: list[str] = []

    def tune(part: TuningPart, entering: BlockSamples, targets: Sequence[Tensor]) -> None:
        history, best = optimize(
            block,
            stored_targets(targets, entering),
            entering,
            settings,
            masks=masks,
            project=None if project is None else lambda _: project(),
            autocast=products,
            progress=_Rounds(progress, f"block {index}  {part}"),
            parallel=parallel,
        )
        # In place: they decide what is zero when the weights get their own dtype again.
        masks.clear()
        masks.update(best)
        rounds.extend(_rounds(history, part))
        if history.stopped:
            place = "" if part == "block" else f" ({part})"
            notes.append(f"tuning block {index}{place} ended early: {history.stopped}")

    with master_weights(block, masks):
        if halves is None:
            tune("block", samples, dense_outputs)
        else:
            with silenced(block, halves.mlp):
                tune("attention", samples, halves.outputs)
                between = _outputs(block, samples)
            with silenced(block, halves.attention):
                tune("mlp", replace(samples, hidden=between), dense_outputs)
    return Tuned(tuple(rounds), masks, "; ".join(notes))


def products_dtype(
    tuning: Reconstruction, device_type: str, dtypes: Collection[torch.dtype]
) -> torch.dtype | None:
    """In which dtype products of masters are taken; None for fp32, that of the masters.

    Args:
        tuning: that may say so itself.
        device_type: where the block is tuned.
        dtypes: of the block's floating parameters, before they got masters.
    """
    chosen = tuning.autocast
    if chosen is None:
        chosen = device_type == "cuda" and all(dtype.itemsize < 4 for dtype in dtypes)
    return torch.bfloat16 if chosen else None


def _device_type(block: nn.Module) -> str:
    return next(block.parameters()).device.type


def _floating_dtypes(block: nn.Module) -> set[torch.dtype]:
    return {value.dtype for value in block.parameters() if value.is_floating_point()}


def _settings(tuning: Reconstruction, index: int) -> ReconstructionSettings:
    values = {
        "rounds": tuning.rounds,
        "samples_per_step": tuning.samples_per_step,
        "optimizer": tuning.optimizer,
        "learning_rate": tuning.rate,
        "scale": tuning.scale,
        "schedule": tuning.schedule,
        "loss": tuning.loss,
        "trained": tuning.parameters,
        "frozen_mask": tuning.frozen_mask,
        "held_out": tuning.held_out,
    }
    chosen: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    per_round = tuning.samples_per_round
    return ReconstructionSettings(
        samples_per_round=per_round if isinstance(per_round, int) else None,
        seed=tuning.seed + index,
        **chosen,
    )


def _outputs(block: nn.Module, samples: BlockSamples) -> tuple[Tensor, ...]:
    """By batch, in the dtype of the block, where the samples are: all do not fit on its device."""
    outputs, first = [], 0
    with torch.no_grad():
        for hidden in samples.hidden:
            chosen = range(first, first + len(hidden))
            outputs.append(_in_parts(block, samples, chosen).to(hidden.device))
            first += len(hidden)
    return tuple(outputs)


def _in_parts(block: nn.Module, samples: BlockSamples, chosen: range) -> Tensor:
    """Outputs for samples of equal length; for fewer at a time where memory is short."""
    try:
        return samples.run(block, chosen)
    except torch.OutOfMemoryError:
        if len(chosen) == 1:
            raise SecateurError(too_long_to_tune(samples.length(chosen[0]))) from None
    # Outside of the handler, whose traceback keeps the tensors of the failed run alive.
    half = (len(chosen) + 1) // 2
    return torch.cat([_in_parts(block, samples, part) for part in (chosen[:half], chosen[half:])])


def _rounds(history: History, part: TuningPart) -> list[TuningRound]:
    return [
        TuningRound(
            part=part,
            round=record.round,
            train_error=None if isnan(record.train_error) else record.train_error,
            held_out_error=record.held_out_error,
        )
        for record in history.rounds
        if record.round > 0 or record.held_out_error is not None
    ]


class _Rounds:
    """Rounds as steps of the stage's own task."""

    def __init__(self, outer: Progress, part: str) -> None:
        self._outer = outer
        self._part = part
        self._round = 0

    def begin(self, task: str, total: int) -> None:
        """The stage counts rounds among its own steps."""

    def advance(self, detail: str = "") -> None:
        """One more round."""
        self._round += 1
        self._outer.advance(f"{self._part}, round {self._round}  {detail}")

    def close(self) -> None:
        """The stage goes on."""
