"""The hidden states that enter a block, batch by batch, and how they move to the next block."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.replay import BlockCall, CapturedBatch, Trace, capture_batch

TOKENS_PER_BATCH = 1024
"""Enough tokens at once to keep the processor busy, few enough to keep activations small."""

NewBuffer = Callable[[int, torch.dtype], Tensor]
"""Makes a flat tensor of so many elements and this dtype, contents undefined."""


@dataclass(frozen=True)
class BlockInputs:
    """What enters one block; `hidden` is overwritten as the work moves from block to block.

    Both activation buffers are allocated once, whole. Outputs that were kept as they came would
    lie between the temporary tensors of a forward pass and keep the memory around them from being
    given back.
    """

    hidden: tuple[Tensor, ...]
    """By batch: [batch, length, width], where activations are kept."""
    outputs: tuple[Tensor, ...]
    """By batch, as `hidden`: the block's outputs once `run_block` was through."""
    calls: tuple[tuple[BlockCall, ...], ...]
    """By batch, then by block. Equal arguments are stored once."""
    num_samples: int
    device: torch.device
    """Where blocks run."""

    def __len__(self) -> int:
        return len(self.hidden)

    def stream(self, block: nn.Module, index: int) -> Iterator[Tensor]:
        """Run block `index` on every batch, one at a time, without gradients.

        Yields:
            its outputs [batch, length, width] on the device where it runs.
        """
        for hidden, calls in zip(self.hidden, self.calls, strict=True):
            with torch.no_grad():
                output = calls[index].to(self.device)(block, hidden.to(self.device))
            if output.dtype != hidden.dtype or output.shape != hidden.shape:
                raise SecateurError(
                    f"expected block {index} to give hidden states as it takes them, "
                    f"{hidden.dtype} {list(hidden.shape)}, but got {output.dtype} "
                    f"{list(output.shape)}; where only the dtype differs, load with dtype float32"
                )
            yield output

    def run_block(self, block: nn.Module, index: int) -> None:
        """Run block `index` on every batch and keep what comes out in `outputs`."""
        for kept, output in zip(self.outputs, self.stream(block, index), strict=True):
            kept.copy_(output)


def capture_inputs(
    model: nn.Module,
    blocks: BlockList,
    trace: Trace,
    tokens: CalibrationTokens,
    tokens_per_batch: int,
    device: torch.device,
    new_buffer: NewBuffer | None = None,
) -> BlockInputs:
    """The inputs of block 0 for all calibration tokens, without computing any block.

    Args:
        model: a causal language model.
        blocks: its blocks.
        trace: how it uses them.
        tokens: to calibrate on.
        tokens_per_batch: run through a block together.
        device: where blocks run.
        new_buffer: where activations are kept between blocks; by default on `device`.

    Raises:
        SecateurError: they are not finite.
    """
    batches = tokens.batches(tokens_per_batch)
    buffers: tuple[tuple[Tensor, ...], ...] = ()
    calls: list[tuple[BlockCall, ...]] = []
    previous: CapturedBatch | None = None
    for number, input_ids in enumerate(batches):
        previous = capture_batch(model, blocks, trace.output_forms, input_ids, previous)
        if not buffers:
            make = new_buffer or (lambda size, dtype: torch.empty(size, dtype=dtype, device=device))
            buffers = tuple(_buffer(batches, previous.hidden, make) for _ in range(2))
        buffers[0][number].copy_(previous.hidden)
        calls.append(previous.calls)
    if not all(bool(torch.isfinite(batch).all()) for batch in buffers[0]):
        raise SecateurError(f"activations that enter {blocks.block_name(0)} hold NaN or Inf")
    return BlockInputs(buffers[0], buffers[1], tuple(calls), len(tokens.samples), device)


def _buffer(
    batches: Sequence[Tensor], example: Tensor, new_buffer: NewBuffer
) -> tuple[Tensor, ...]:
    """One allocation, as a view [batch, length, width] for every batch of token ids."""
    width = example.shape[-1]
    sizes = [batch.numel() * width for batch in batches]
    flat = new_buffer(sum(sizes), example.dtype)
    parts = torch.split(flat, sizes)
    return tuple(part.view(*batch.shape, width) for part, batch in zip(parts, batches, strict=True))
