"""What enters a block of the dense model, so that it can be run from there on.

A cut in block b leaves what enters block b as it was: the blocks before it are run once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.entering import OutputForms, enterable_forms
from secateur.models.replay import CapturedBatch, capture_batch


def output_forms(model: nn.Module, blocks: BlockList, input_ids: Tensor) -> OutputForms | None:
    """What every block returns; None where the model cannot be run from the middle.

    Args:
        input_ids: int64 [batch, length]; a few tokens of it are used.
    """
    try:
        return enterable_forms(model, blocks, input_ids)
    except SecateurError:
        return None


class DenseInputs:
    """The hidden states that enter a block of the dense model, for batches of tokens.

    They are computed block after block and kept for one block at a time. To go back, the walk
    begins anew; equal walks give equal bits.
    """

    def __init__(
        self, model: nn.Module, blocks: BlockList, forms: OutputForms, batches: Sequence[Tensor]
    ) -> None:
        """Note what enters block 0, without computing any block.

        Args:
            model: in evaluation mode whenever this is used.
            batches: int64 [batch, length] each, padded at the end if at all.
        """
        self._blocks = blocks
        self._captured: list[CapturedBatch] = []
        for input_ids in batches:
            previous = self._captured[-1] if self._captured else None
            self._captured.append(capture_batch(model, blocks, forms, input_ids, previous))
        self._position = 0
        self._hidden = [captured.hidden for captured in self._captured]

    def at(self, index: int) -> list[Tensor]:
        """What enters block `index`, by batch; the blocks before it must be dense now."""
        if index < self._position:
            self._position = 0
            self._hidden = [captured.hidden for captured in self._captured]
        for block in range(self._position, index):
            with torch.no_grad():
                self._hidden = [
                    captured.calls[block](self._blocks.modules[block], hidden)
                    for captured, hidden in zip(self._captured, self._hidden, strict=True)
                ]
            self._position = block + 1
        return self._hidden
