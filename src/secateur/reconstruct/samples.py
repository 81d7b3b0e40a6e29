"""Single samples of captured batches: any of them, in any order and number, through a block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.replay import BlockCall, joined
from secateur.spans import Span


@dataclass(frozen=True)
class BlockSamples:
    """What enters one block, addressed by sample; samples are numbered through the batches."""

    hidden: tuple[Tensor, ...]
    """By batch: [batch, length, width]."""
    calls: tuple[BlockCall, ...]
    """By batch: how this block is called."""
    spans: tuple[Span, ...] | None = None
    """By sample, of all processes that tune together, where it lies in one text; None where that is
    not known."""

    def __post_init__(self) -> None:
        if len(self.hidden) != len(self.calls) or not self.hidden:
            raise SecateurError(
                "expected one call for each of at least one batch, "
                f"got {len(self.calls)} calls and {len(self.hidden)} batches"
            )

    @cached_property
    def _places(self) -> tuple[tuple[int, int], ...]:
        return tuple(
            (batch, row) for batch, hidden in enumerate(self.hidden) for row in range(len(hidden))
        )

    @property
    def num_samples(self) -> int:
        """Over all batches."""
        return len(self._places)

    def length(self, sample: int) -> int:
        """Tokens of one sample."""
        return self.hidden[self._places[sample][0]].shape[1]

    def micro_batches(self, samples: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """Neighbours of equal length together: at most `max_tokens`, but at least one sample."""
        batch: list[int] = []
        for sample in samples:
            length = self.length(sample)
            if batch and (
                length != self.length(batch[0]) or (len(batch) + 1) * length > max_tokens
            ):
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch

    def rows(self, buffers: Sequence[Tensor], samples: Sequence[int]) -> Tensor:
        """The samples' parts of buffers shaped as `hidden`, such as outputs that were kept.

        Args:
            buffers: by batch [batch, length, width].
            samples: of equal length.

        Returns:
            [len(samples), length, width].
        """
        places = [self._places[sample] for sample in samples]
        batches = {batch for batch, _ in places}
        if len(batches) == 1:
            buffer = buffers[batches.pop()]
            wanted = [row for _, row in places]
            first = wanted[0]
            if wanted == list(range(first, first + len(wanted))):
                return buffer[first : first + len(wanted)]
            return buffer[wanted]
        return torch.stack([buffers[batch][row] for batch, row in places])

    def single(self, sample: int) -> "BlockSamples":
        """One sample alone, as number 0."""
        return BlockSamples((self.rows(self.hidden, [sample]),), (self._own_call(sample),))

    def run(self, block: nn.Module, samples: Sequence[int]) -> Tensor:
        """The block's hidden states [len(samples), length, width] for samples of equal length.

        Inputs and floating arguments are given in the dtype and on the device of the block's
        first parameter.
        """
        like = next(block.parameters())
        call = joined([self._own_call(sample) for sample in samples]).map(
            lambda tensor: tensor.to(
                like.device, like.dtype if tensor.is_floating_point() else tensor.dtype
            )
        )
        return call(block, self.rows(self.hidden, samples).to(like.device, like.dtype))

    def _own_call(self, sample: int) -> BlockCall:
        batch, row = self._places[sample]
        return self.calls[batch].rows(row, row + 1)
