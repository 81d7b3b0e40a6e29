"""Examples into windows of one length, none cut that fits into a window."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secateur.training.data.blocks import Tally, WindowBlock
from secateur.training.data.tokenizer import TokenIds

# An example goes into the first of so many windows: what is left open is bounded, and the gaps
# are small, for most examples are short.
_OPEN_WINDOWS = 64
_WINDOWS_AT_ONCE = 256


@dataclass(frozen=True)
class EncodedExample:
    """The tokens of an example."""

    tokens: TokenIds
    """int64 [length]"""
    loss: NDArray[np.bool_]
    """[length]: where the loss is taken."""


@dataclass(eq=False)
class _Window:
    examples: list[EncodedExample] = field(default_factory=list)
    used: int = 0

    def add(self, example: EncodedExample) -> None:
        self.examples.append(example)
        self.used += len(example.tokens)


def packed_windows(
    examples: Iterable[EncodedExample], max_seq_length: int, pad: int, pack: bool, tally: Tally
) -> Iterator[WindowBlock]:
    """Windows with masks, filled first-fit in the order of the examples.

    No loss is taken at the first token of an example: nothing before it is its own. An example
    longer than a window is cut at its end; one without a token to learn is dropped.

    Args:
        examples: in order.
        max_seq_length: tokens in a window.
        pad: the token id that fills gaps.
        pack: whether a window holds several examples.
        tally: told of examples, tokens, cuts and drops.
    """
    batch: list[_Window] = []
    for window in _filled(_fitting(examples, max_seq_length, tally), max_seq_length, pack):
        tally.num_tokens += window.used
        batch.append(window)
        if len(batch) == _WINDOWS_AT_ONCE:
            yield _block(batch, max_seq_length, pad)
            batch = []
    if batch:
        yield _block(batch, max_seq_length, pad)


def _fitting(
    examples: Iterable[EncodedExample], length: int, tally: Tally
) -> Iterator[EncodedExample]:
    for example in examples:
        tally.num_documents += 1
        tally.num_read += len(example.tokens)
        tokens, loss = example.tokens[:length], example.loss[:length].copy()
        loss[:1] = False
        if not loss.any():
            tally.num_dropped += 1
            continue
        tally.num_cut += len(example.tokens) > length
        yield EncodedExample(tokens, loss)


def _filled(examples: Iterable[EncodedExample], length: int, pack: bool) -> Iterator[_Window]:
    windows: list[_Window] = []
    for example in examples:
        size = len(example.tokens)
        window = next((w for w in windows if pack and w.used + size <= length), None)
        if window is None:
            if len(windows) == (_OPEN_WINDOWS if pack else 1):
                yield windows.pop(0)
            window = _Window()
            windows.append(window)
        window.add(example)
        if window.used == length:
            windows.remove(window)
            yield window
    yield from windows


def _block(windows: list[_Window], length: int, pad: int) -> WindowBlock:
    shape = (len(windows), length)
    tokens = np.full(shape, pad, dtype=np.int64)
    loss, starts = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for row, window in enumerate(windows):
        place = 0
        for example in window.examples:
            end = place + len(example.tokens)
            tokens[row, place:end], loss[row, place:end] = example.tokens, example.loss
            starts[row, place] = True
            place = end
        # Padding counts as an example of its own.
        starts[row, place : place + 1] = True
    return WindowBlock(tokens, loss, starts)
