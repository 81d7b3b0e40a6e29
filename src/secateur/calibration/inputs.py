"""The hidden states that enter a block, batch by batch, and how they move to the next block."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.replay import BlockCall, CapturedBatch, Trace, capture_batch


@dataclass
class BlockInputs:
    """What enters one block; `hidden` is overwritten as the work moves from block to block."""

    hidden: list[Tensor]
    """By batch: [batch, length, width] on the device where blocks run."""
    calls: list[tuple[BlockCall, ...]]
    """By batch, then by block. Equal arguments are stored once."""
    num_samples: int

    def __len__(self) -> int:
        return len(self.hidden)

    def outputs(self, block: nn.Module, index: int) -> Iterator[Tensor]:
        """Run block `index` on every batch, one at a time, without gradients."""
        for hidden, calls in zip(self.hidden, self.calls, strict=True):
            with torch.no_grad():
                yield calls[index].to(hidden.device)(block, hidden)


def capture_inputs(
    model: nn.Module,
    blocks: BlockList,
    trace: Trace,
    tokens: CalibrationTokens,
    tokens_per_batch: int,
    device: torch.device,
) -> BlockInputs:
    """The inputs of block 0 for all calibration tokens, without computing any block.

    Raises:
        SecateurError: they are not finite.
    """
    batches: list[CapturedBatch] = []
    hidden: list[Tensor] = []
    for input_ids in tokens.batches(tokens_per_batch):
        previous = batches[-1] if batches else None
        batch = capture_batch(model, blocks, trace.output_forms, input_ids, previous)
        batches.append(batch)
        hidden.append(batch.hidden.to(device))
    if not all(bool(torch.isfinite(batch).all()) for batch in hidden):
        raise SecateurError(f"activations that enter {blocks.block_name(0)} hold NaN or Inf")
    return BlockInputs(hidden, [batch.calls for batch in batches], len(tokens.samples))
