"""The loss of a model on tokens, again and again, computed from a block on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.depth.token_loss import TokenLoss
from secateur.models.blocks import BlockList
from secateur.models.entering import OutputForms, entering_at
from secateur.search.suffix import DenseInputs


class HeldOutLoss:
    """Mean loss in nats a token of a model of which one block is changed at a time.

    What enters a block of the dense model is kept, so that the blocks before it need not run.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: BlockList,
        forms: OutputForms,
        batches: Sequence[Tensor],
    ) -> None:
        """Note what enters block 0.

        Args:
            model: in evaluation mode whenever this is used.
            blocks: its blocks.
            forms: what each returns.
            batches: int64 [batch, length], on the model's device.
        """
        self._model = model
        self._blocks = blocks
        self._forms = forms
        self._batches = batches
        self._inputs = DenseInputs(model, blocks, forms, batches)

    def move_to(self, index: int) -> None:
        """Compute what enters block `index`; the blocks before it must be dense now."""
        self._hidden = self._inputs.at(index)
        self._index = index

    @torch.no_grad()
    def value(self, without_block: bool = False) -> float:
        """The loss, with the block moved to as it is now, or without it."""
        loss = TokenLoss()
        first = self._index + without_block
        for input_ids, hidden in zip(self._batches, self._hidden, strict=True):
            with entering_at(self._blocks, self._forms, first, hidden):
                logits = self._model(input_ids=input_ids, use_cache=False).logits
            loss.add(logits, input_ids)
        return loss.value()
