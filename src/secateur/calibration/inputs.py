"""The hidden states that enter a block, batch by batch, and how they move to the next block."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.measure import is_finite
from secateur.models.replay import BlockCall, CapturedBatch, capture_batch
from secateur.models.trace import Trace
from secateur.spans import Span

TOKENS_PER_BATCH = 1024
"""Enough tokens at once to keep a processor busy, few enough to keep activations small."""
_TOKENS_PER_BATCH_ON_GPU = 8192
"""A hundred kernels are launched a batch, which takes as long as a small one computes."""

# Masks of long samples of many lengths stay where the model made them.
_MOST_ARGUMENT_BYTES = 1 << 30

Value = TypeVar("Value")

NewBuffer = Callable[[int, torch.dtype], Tensor]
"""Makes a flat tensor of so many elements and this dtype, contents undefined."""


def tokens_per_batch(device: torch.device) -> int:
    """How many calibration tokens run through a block together."""
    return _TOKENS_PER_BATCH_ON_GPU if device.type == "cuda" else TOKENS_PER_BATCH


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
    spans: tuple[Span, ...] | None = None
    """By sample, of all `num_samples`: see `CalibrationTokens`."""

    def __len__(self) -> int:
        return len(self.hidden)

    def stream(self, block: nn.Module, index: int) -> Iterator[Tensor]:
        """Outputs as of `stream_in_parts`, with as many samples at once as there is memory for."""
        for output, _ in self.stream_in_parts(block, index, self.batch_sizes()):
            yield output

    def stream_in_parts(
        self, block: nn.Module, index: int, together: Sequence[int]
    ) -> Iterator[tuple[Tensor, int]]:
        """Run block `index` on every batch, one at a time, without gradients.

        Where a batch does not fit in the device's memory, its samples are run in smaller parts.

        Args:
            block: on the device.
            index: of the block.
            together: by batch, how many of its samples to run together at most. The same numbers
                give the same results, bit for bit, as long as they fit.

        Yields:
            (its outputs [batch, length, width] on the device where it runs, how many samples were
            run together).

        Raises:
            SecateurError: a sample alone does not fit, or the block changes shape or dtype.
        """
        for hidden, calls, most in zip(self.hidden, self.calls, together, strict=True):
            output, fitting = self._in_parts(block, calls[index], hidden, most)
            _require_alike(index, output, hidden)
            yield output, fitting

    def batch_sizes(self) -> list[int]:
        """Samples of every batch."""
        return [len(hidden) for hidden in self.hidden]

    def _in_parts(
        self, block: nn.Module, call: BlockCall, hidden: Tensor, samples_at_once: int
    ) -> tuple[Tensor, int]:
        """The block's outputs, and how many samples there was memory for at once."""
        size = len(hidden)
        try:
            parts = [
                _run(block, call.rows(first, first + samples_at_once), part, self.device)
                for first, part in zip(
                    range(0, size, samples_at_once),
                    torch.split(hidden, samples_at_once),
                    strict=True,
                )
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts), samples_at_once
        except torch.OutOfMemoryError:
            if samples_at_once == 1:
                raise SecateurError(_too_long(hidden.shape[1], self.device)) from None
        # Outside of the handler, whose traceback keeps the tensors of the failed run alive.
        return self._in_parts(block, call, hidden, (samples_at_once + 1) // 2)

    def run_block(self, block: nn.Module, index: int) -> None:
        """Run block `index` on every batch and keep what comes out in `outputs`.

        Raises:
            torch.OutOfMemoryError: as `run_batch`.
        """
        for batch in range(len(self)):
            self.run_batch(block, index, batch)

    def run_batch(self, block: nn.Module, index: int, batch: int) -> None:
        """Run block `index` on one batch and keep what comes out in `outputs`.

        Raises:
            torch.OutOfMemoryError: it does not fit. Nothing that watches the block may count a
                batch twice, so that all has to start over: see `in_smaller_batches`.
        """
        hidden = self.hidden[batch]
        output = _run(block, self.calls[batch][index], hidden, self.device)
        _require_alike(index, output, hidden)
        self.outputs[batch].copy_(output)

    def pass_through(self, block: nn.Module, index: int, together: Sequence[int]) -> None:
        """Make the outputs of block `index` the next block's inputs.

        Arguments as of `stream_in_parts`.
        """
        outputs = self.stream_in_parts(block, index, together)
        for hidden, (output, _) in zip(self.hidden, outputs, strict=True):
            hidden.copy_(output)

    def keep_outputs(self) -> None:
        """Make what `run_block` kept the next block's inputs."""
        for hidden, output in zip(self.hidden, self.outputs, strict=True):
            hidden.copy_(output)

    def in_batches(self, number: int) -> "BlockInputs":
        """The same samples in the same memory, in batches halved until there are so many.

        Raises:
            SecateurError: there are fewer samples.
        """
        return self if len(self) >= number else self.halved().in_batches(number)

    def halved(self) -> "BlockInputs":
        """The same samples in the same memory, in batches of half the size.

        Raises:
            SecateurError: every batch is a single sample.
        """
        if all(len(hidden) == 1 for hidden in self.hidden):
            longest = max(hidden.shape[1] for hidden in self.hidden)
            raise SecateurError(_too_long(longest, self.device))
        hidden: list[Tensor] = []
        outputs: list[Tensor] = []
        calls: list[tuple[BlockCall, ...]] = []
        for states, kept, by_block in zip(self.hidden, self.outputs, self.calls, strict=True):
            size = len(states)
            half = (size + 1) // 2
            hidden += torch.split(states, half)
            outputs += torch.split(kept, half)
            calls += [
                tuple(call.rows(first, first + half) for call in by_block)
                for first in range(0, size, half)
            ]
        return replace(self, hidden=tuple(hidden), outputs=tuple(outputs), calls=tuple(calls))


def in_smaller_batches(
    work: Callable[[tuple[BlockInputs, ...]], Value],
    streams: tuple[BlockInputs, ...],
    alone: bool = True,
) -> tuple[Value, tuple[BlockInputs, ...]]:
    """Work on batches, begun anew on batches of half the size as often as memory is short.

    Args:
        work: watches blocks while they are run, and forgets all of it when it fails.
        streams: one or several, with batches of the same sizes.
        alone: False if other processes work on their part: who begins anew would not meet them.

    Returns:
        (what `work` gave, the streams that it gave it for).

    Raises:
        SecateurError: a sample alone does not fit; or memory is short and there are others.
    """
    while True:
        try:
            return work(streams), streams
        except torch.OutOfMemoryError:
            # Its traceback keeps the tensors of the failed run alive: on from outside of here.
            pass
        if not alone:
            raise SecateurError(_too_many(streams[0]))
        streams = tuple(stream.halved() for stream in streams)


def shortage_note(index: int, before: BlockInputs, after: BlockInputs) -> str:
    """What the report says of block `index` if `in_smaller_batches` made batches smaller."""
    if len(after) == len(before):
        return ""
    samples = max(len(hidden) for hidden in after.hidden)
    return f"block {index}: memory was short, from here on {samples} samples run together"


def _run(block: nn.Module, call: BlockCall, hidden: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        return call.to(device)(block, hidden.to(device))


def _require_alike(index: int, output: Tensor, hidden: Tensor) -> None:
    if output.dtype != hidden.dtype or output.shape != hidden.shape:
        raise SecateurError(
            f"expected block {index} to give hidden states as it takes them, "
            f"{hidden.dtype} {list(hidden.shape)}, but got {output.dtype} "
            f"{list(output.shape)}; where only the dtype differs, load with dtype float32"
        )


def _too_many(inputs: BlockInputs) -> str:
    samples, length = max(hidden.shape[:2] for hidden in inputs.hidden)
    return (
        f"{inputs.device} has no memory to run one block on {samples} calibration samples of "
        f"{length} tokens together, and one of several processes cannot begin again with fewer, "
        "as the others go on; run a single process"
    )


def _too_long(length: int, device: torch.device) -> str:
    return (
        f"{device} has no memory to run one block on one calibration sample of {length} tokens; "
        "give a smaller max_seq_length"
    )


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
        SecateurError: they are not finite, or there is no memory for them.
    """
    batches = tokens.batches(tokens_per_batch)
    buffers: tuple[tuple[Tensor, ...], ...] = ()
    calls: list[tuple[BlockCall, ...]] = []
    previous: CapturedBatch | None = None
    for number, input_ids in enumerate(batches):
        previous = capture_batch(model, blocks, trace.output_forms, input_ids, previous)
        if not buffers:
            make = new_buffer or (lambda size, dtype: torch.empty(size, dtype=dtype, device=device))
            example = previous.hidden.to(trace.wider or previous.hidden.dtype)
            buffers = tuple(_buffer(batches, example, make) for _ in range(2))
        buffers[0][number].copy_(previous.hidden)
        calls.append(previous.calls)
    if not all(map(is_finite, buffers[0])):
        raise SecateurError(f"activations that enter {blocks.block_name(0)} hold NaN or Inf")
    placed = tuple(arguments_on(device, calls))
    return BlockInputs(buffers[0], buffers[1], placed, len(tokens.samples), device, tokens.spans)


def arguments_on(
    device: torch.device, calls: Sequence[tuple[BlockCall, ...]]
) -> list[tuple[BlockCall, ...]]:
    """Calls by batch with all of their tensors on a device, each once, if they are few enough.

    Otherwise they are left where they are and go there with every batch: each such copy waits for
    all that the device was given before.
    """
    tensors = {id(t): t for by_block in calls for call in by_block for t in call.tensors()}
    if sum(tensor.nbytes for tensor in tensors.values()) > _MOST_ARGUMENT_BYTES:
        return list(calls)
    there = {key: tensor.to(device) for key, tensor in tensors.items()}
    return [
        tuple(call.map(lambda tensor: there[id(tensor)]) for call in by_block) for by_block in calls
    ]


def _buffer(
    batches: Sequence[Tensor], example: Tensor, new_buffer: NewBuffer
) -> tuple[Tensor, ...]:
    """One allocation, as a view [batch, length, width] for every batch of token ids."""
    each = example.shape[2:]
    width = each.numel()
    sizes = [batch.numel() * width for batch in batches]
    try:
        flat = new_buffer(sum(sizes), example.dtype)
    except torch.OutOfMemoryError:
        raise SecateurError(
            f"expected memory for activations of {sum(sizes) // width:,} calibration tokens twice, "
            f"{2 * sum(sizes) * example.element_size() / 2**30:.1f} GiB, where blocks run; give "
            "fewer or shorter samples, or keep activations in host memory by streaming the model"
        ) from None
    parts = torch.split(flat, sizes)
    return tuple(part.view(*batch.shape, *each) for part, batch in zip(parts, batches, strict=True))
