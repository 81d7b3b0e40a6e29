"""The calibration tokens on their way through the blocks that are left.

Nothing is taken out of the model while blocks are being chosen: what is gone is passed over. A
scale that follows from a block's place is therefore still the old one; few families have any.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs
from secateur.depth.token_loss import TokenLoss
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.device import input_embedding, on_device
from secateur.models.entering import OutputForms, entering_at
from secateur.models.sublayers import Part, Sublayers, silenced
from secateur.models.trace import Trace


@dataclass(frozen=True)
class DropCalibration:
    """The tokens that scores and losses are measured on."""

    enter: Callable[[], tuple[BlockInputs | None, Trace | None]]
    """The inputs of block 0, made anew: no block is computed for it."""
    input_ids: Sequence[Tensor]
    """By batch as the inputs are."""


class Walk:
    """Hidden states that pass through a model's blocks one by one, over and over."""

    def __init__(
        self,
        model: nn.Module,
        blocks: BlockList,
        calibration: DropCalibration,
        device: torch.device,
        part: Part | None = None,
        sublayers: Sequence[Sublayers] = (),
    ) -> None:
        """Begin before block 0, with everything there.

        Args:
            model: in evaluation mode.
            blocks: its blocks.
            calibration: the tokens.
            device: where blocks run, one at a time. Final norm and head run where the model is.
            part: what goes of a block; None for the whole.
            sublayers: by block, where a part goes.
        """
        self.blocks = blocks
        self.part = part
        self.sublayers = sublayers
        self.gone: set[int] = set()
        """Blocks that are without what goes."""
        self._model = model
        self._calibration = calibration
        self._device = device
        self.inputs = self._entered()

    def restart(self) -> None:
        """Go back to what enters block 0."""
        # The old buffers go first: both pairs would not fit where one does.
        del self.inputs
        self.inputs = self._entered()

    def _entered(self) -> BlockInputs:
        inputs, trace = self._calibration.enter()
        if inputs is None or trace is None:
            raise SecateurError("expected calibration tokens to measure blocks by, got none")
        self._forms: OutputForms = trace.output_forms
        return inputs

    def passes_over(self, index: int) -> bool:
        """Whether the whole block is gone."""
        return self.part is None and index in self.gone

    def outputs(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What enters a block that is there, and what leaves it, batch by batch; then move on.

        Where a part of a block goes: what enters and leaves that part. Each pair must be used
        before the next is asked for.
        """
        block = self.blocks.modules[index]
        with on_device(block, self._device):
            if self.part is not None:
                yield from self._around_part(index)
                self._advance(self.inputs, index)
                return
            for hidden, output in zip(
                self.inputs.hidden, self.inputs.stream(block, index), strict=True
            ):
                yield hidden, output
                hidden.copy_(output)

    def advance(self, index: int) -> None:
        """Move on past one block, as far as it is there."""
        if not self.passes_over(index):
            with on_device(self.blocks.modules[index], self._device):
                self._advance(self.inputs, index)

    def loss(self) -> float:
        """The loss in nats a token of hidden states that have passed all blocks."""
        return self._loss(self.inputs.hidden)

    def loss_without(self, index: int) -> float:
        """The loss if a block, or its part, went too; hidden states stay where they are.

        They must be about to enter it. Only the blocks after it are run.
        """
        inputs = self.inputs
        ahead = replace(inputs, hidden=inputs.outputs, outputs=inputs.hidden)
        for target, hidden in zip(ahead.hidden, inputs.hidden, strict=True):
            target.copy_(hidden)
        self.gone.add(index)
        try:
            for later in range(index, len(self.blocks)):
                if not self.passes_over(later):
                    with on_device(self.blocks.modules[later], self._device):
                        self._advance(ahead, later)
        finally:
            self.gone.remove(index)
        return self._loss(ahead.hidden)

    def _advance(self, inputs: BlockInputs, index: int) -> None:
        block = self.blocks.modules[index]
        with self._as_left(index):
            for hidden, output in zip(inputs.hidden, inputs.stream(block, index), strict=True):
                hidden.copy_(output)

    def _as_left(self, index: int) -> AbstractContextManager[None]:
        if self.part is None or index not in self.gone:
            return nullcontext()
        return silenced(self.blocks.modules[index], self.sublayers[index].part(self.part))

    def _around_part(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Hidden states without what a part adds, and with it."""
        block, found, inputs = self.blocks.modules[index], self.sublayers[index], self.inputs
        if self.part == "mlp" and found.one_after_other:
            with silenced(block, found.mlp):
                for kept, between in zip(inputs.outputs, inputs.stream(block, index), strict=True):
                    kept.copy_(between)
            yield from zip(inputs.outputs, inputs.stream(block, index), strict=True)
            return
        other = found.mlp if self.part == "attention" else found.attention
        with silenced(block, other):
            yield from zip(inputs.hidden, inputs.stream(block, index), strict=True)

    def _loss(self, batches: Sequence[Tensor]) -> float:
        total = TokenLoss()
        home = input_embedding(self._model).device
        for hidden, input_ids in zip(batches, self._calibration.input_ids, strict=True):
            past_blocks = entering_at(self.blocks, self._forms, len(self.blocks), hidden.to(home))
            with past_blocks, torch.no_grad():
                logits = self._model(input_ids=input_ids.to(home), use_cache=False).logits
            total.add(logits, input_ids)
        return total.value()
