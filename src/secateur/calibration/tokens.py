"""Calibration tokens as a validated value: samples of one or several lengths, never padded."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import require_context
from secateur.models.device import vocabulary_size
from secateur.spans import Span

MIN_SEQUENCE_TOKENS = 2


@dataclass(frozen=True)
class CalibrationTokens:
    """Token ids without padding."""

    samples: tuple[Tensor, ...]
    """int64 [length] each; lengths may differ."""
    source: str
    """Where they came from, for the report."""
    spans: tuple[Span, ...] | None = None
    """By sample, where it lies in one text; None where that is not known."""

    @property
    def num_tokens(self) -> int:
        """Tokens over all samples."""
        return sum(len(sample) for sample in self.samples)

    @property
    def max_seq_length(self) -> int:
        """Length of the longest sample."""
        return max(len(sample) for sample in self.samples)

    def sha256(self) -> str:
        """Digest of the ids and the lengths."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(len(sample).to_bytes(8, "little"))
            digest.update(sample.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def batches(self, tokens_per_batch: int) -> list[Tensor]:
        """Samples in their order, as int64 [batch, length]: neighbours of equal length together.

        Args:
            tokens_per_batch: a batch holds at most this many tokens, but at least one sample.
        """
        batches: list[list[Tensor]] = []
        for sample in self.samples:
            fits = (
                batches
                and len(batches[-1][0]) == len(sample)
                and (len(batches[-1]) + 1) * len(sample) <= tokens_per_batch
            )
            if fits:
                batches[-1].append(sample)
            else:
                batches.append([sample])
        return [torch.stack(batch) for batch in batches]

    def share(self, rank: int, size: int, tokens_per_batch: int) -> "CalibrationTokens":
        """The samples of one of several processes: neighbours, in its order.

        Batches of `tokens_per_batch` stay whole where there are enough, so that every process
        computes just what one alone would.

        Args:
            rank: of the process.
            size: processes.
            tokens_per_batch: as given to `batches`.

        Raises:
            SecateurError: there are fewer samples than processes.
        """
        if len(self.samples) < size:
            raise SecateurError(
                f"expected at least one calibration sample for each of {size} processes, got "
                f"{len(self.samples)}; give more samples or start fewer processes"
            )
        sizes = [len(batch) for batch in self.batches(tokens_per_batch)]
        if len(sizes) < size:
            sizes = [1] * len(self.samples)
        first, last = (len(sizes) * edge // size for edge in (rank, rank + 1))
        return self.only(range(sum(sizes[:first]), sum(sizes[:last])))

    def only(self, chosen: Iterable[int]) -> "CalibrationTokens":
        """Some of the samples, by number, in the order given."""
        numbers = list(chosen)
        spans = None if self.spans is None else tuple(self.spans[number] for number in numbers)
        samples = tuple(self.samples[number] for number in numbers)
        return CalibrationTokens(samples, self.source, spans)

    def check_fit(self, model: nn.Module) -> None:
        """Raise SecateurError if a model has no embedding or no positions for some of them."""
        self.check_vocabulary(vocabulary_size(model))
        require_context(model, self.max_seq_length)

    def check_vocabulary(self, vocabulary_size: int) -> None:
        """Raise SecateurError if a token id is not below `vocabulary_size`."""
        for index, sample in enumerate(self.samples):
            low, high = int(sample.min()), int(sample.max())
            if low < 0 or high >= vocabulary_size:
                raise SecateurError(
                    f"expected token ids from 0 to {vocabulary_size - 1}, the model's vocabulary, "
                    f"but calibration sample {index} holds {low if low < 0 else high}; was it "
                    "made with another model's tokenizer?"
                )


def tokens_from_tensor(
    input_ids: Tensor, attention_mask: Tensor | None = None, source: str = "token tensor"
) -> CalibrationTokens:
    """Take token ids as they are, padding removed.

    Padding is cut off and never fed to the model: statistics see real tokens only, and positions
    start at 0 whichever side was padded.

    Args:
        input_ids: integer [samples, length].
        attention_mask: bool or integer [samples, length], 0 = padding; None if there is none.
        source: for the report.

    Raises:
        SecateurError: wrong shape or dtype, a mask with holes, a sample that is too short.
    """
    if input_ids.ndim != 2 or input_ids.dtype.is_floating_point or input_ids.dtype == torch.bool:
        raise SecateurError(
            "expected calibration token ids as an integer tensor [samples, length], "
            f"got {input_ids.dtype} {list(input_ids.shape)}"
        )
    rows: Sequence[Tensor] = input_ids.long().cpu().unbind()
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise SecateurError(
                f"expected attention_mask {list(input_ids.shape)} as input_ids, "
                f"got {list(attention_mask.shape)}"
            )
        masks = attention_mask.bool().cpu().unbind()
        rows = [
            _unpadded(row, mask, i) for i, (row, mask) in enumerate(zip(rows, masks, strict=True))
        ]
    return checked_tokens(rows, source)


def _unpadded(row: Tensor, mask: Tensor, index: int) -> Tensor:
    places = mask.nonzero().flatten()
    if len(places) and int(places[-1] - places[0]) + 1 != len(places):
        raise SecateurError(
            f"expected padding at the ends only, but the mask of calibration sample {index} has "
            "holes"
        )
    return row[mask]


def checked_tokens(samples: Sequence[Tensor], source: str) -> CalibrationTokens:
    """Validate samples.

    Raises:
        SecateurError: there are none, or one is too short to mean anything.
    """
    if not samples:
        raise SecateurError(f"calibration is empty: {source} holds no samples")
    for index, sample in enumerate(samples):
        if len(sample) < MIN_SEQUENCE_TOKENS:
            raise SecateurError(
                f"calibration sample {index} of {source} is too short: expected at least "
                f"{MIN_SEQUENCE_TOKENS} tokens, got {len(sample)}"
            )
    return CalibrationTokens(tuple(samples), source)
