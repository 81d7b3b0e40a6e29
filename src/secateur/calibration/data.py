"""Calibration text from where people keep it: files, folders, JSON lines, `datasets`, tensors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from secateur.calibration.listed import documents_of, holds_tokens, tokens_one_by_one
from secateur.calibration.tokens import CalibrationTokens, checked_tokens, tokens_from_tensor
from secateur.errors import SecateurError
from secateur.seeds import require_seed
from secateur.texts import sources as texts

Sample = str | Tensor | Sequence[int] | Mapping[str, Any]
"""A text; token ids, [length] or [samples, length]; or a row of a dataset: `text`, `messages`, or
`input_ids` and `attention_mask`."""
CalibrationSource = (
    str | Path | Iterable[Sample] | Tensor | Mapping[str, Tensor] | CalibrationTokens
)

# Windows are drawn from about this many times the tokens that they need: enough for variety, and
# a corpus of any size is tokenised only as far as that.
_SURPLUS = 16
_CHARACTERS_AT_ONCE = 1 << 20


class Tokenizer(Protocol):
    """What calibration needs of a tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
        """A mapping with `input_ids`, a list of ids."""


def check_source(source: CalibrationSource) -> None:
    """Find before any token is made that a source is a path to nothing.

    Raises:
        SecateurError: there is no such file or folder, or no text in it.
    """
    if isinstance(source, str | Path):
        texts.source_files(source, "calibration")


def load_calibration(
    source: CalibrationSource,
    tokenizer: Tokenizer | None,
    *,
    num_samples: int = 128,
    max_seq_length: int = 2048,
    seed: int = 0,
    purpose: str = "calibration",
) -> CalibrationTokens:
    """Draw calibration tokens.

    Text is tokenised document after document and concatenated, and windows start at random
    places of the whole: no search for long documents, so nothing can hang, and every window is
    full. Token tensors are taken as they are.

    Args:
        source: a text file, a folder of them, a JSON-lines file with `text` or `messages`, the name
            of a dataset (`name`, `name:config` or `name:config:split`, needs the `datasets` extra);
            texts, rows or token ids, one after another (see `Sample`); a LongTensor [samples,
            length], a mapping with `input_ids` and (0 = padding) `attention_mask` of that shape; or
            tokens drawn before. `messages` become text by the tokenizer's chat template.
        tokenizer: of the model; only a token tensor does without.
        num_samples: windows to draw.
        max_seq_length: tokens in a window.
        seed: of the draw; the same arguments give the same windows.
        purpose: what the text is for, for messages.

    Raises:
        SecateurError: the source cannot be read, is empty, or is too short for one window; or the
            seed is out of range.
    """
    if isinstance(source, CalibrationTokens):
        return source
    if isinstance(source, Tensor):
        return tokens_from_tensor(source)
    if isinstance(source, Mapping):
        return _tokens_from_mapping(source)
    if not isinstance(source, str | Path | Iterable):
        raise SecateurError(
            "expected calibration as a path, a dataset's name, texts or a LongTensor "
            f"[samples, length], got {type(source).__name__}"
        )
    if isinstance(source, str | Path):
        name = str(source)
    else:
        name = f"{len(source)} texts" if isinstance(source, Sequence) else "texts"
        # The rest is read as far as it is needed: it may never end.
        rest = iter(source)
        first = list(islice(rest, 1))
        source = chain(first, rest)
        if first and holds_tokens(first[0]):
            return tokens_one_by_one(list(source))
    if num_samples < 1 or max_seq_length < 2:
        raise SecateurError(
            "expected num_calibration_samples of at least 1 and max_seq_length of at least 2, "
            f"got {num_samples} and {max_seq_length}"
        )
    require_seed(seed)
    if tokenizer is None:
        raise SecateurError(
            "calibration from text needs the model's tokenizer; give `tokenizer`, or token ids "
            "as a LongTensor [samples, length]"
        )
    enough = _SURPLUS * num_samples * max_seq_length
    stream = _concatenated(documents_of(source, tokenizer, purpose), tokenizer, enough)
    return _random_windows(stream, num_samples, max_seq_length, seed, name, purpose)


def _tokens_from_mapping(source: Mapping[str, Tensor]) -> CalibrationTokens:
    ids, mask = source.get("input_ids"), source.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor | None):
        found = {str(name): type(value).__name__ for name, value in source.items()}
        raise SecateurError(
            "expected a mapping with `input_ids`, and `attention_mask` where there is padding, "
            f"both tensors [samples, length]; got {found}"
        )
    return tokens_from_tensor(ids, mask)


def _concatenated(
    documents: Iterable[tuple[str, bool]], tokenizer: Tokenizer, enough: int
) -> Tensor:
    pieces: list[Tensor] = []
    total = 0
    for text, begins in documents:
        for start, piece in _in_pieces(text):
            special = start and begins
            ids = tokenizer(piece, add_special_tokens=special, verbose=False)["input_ids"]
            pieces.append(torch.tensor(ids, dtype=torch.long))
            total += len(ids)
            if total >= enough:
                return torch.cat(pieces)
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)


def _in_pieces(text: str) -> Iterator[tuple[bool, str]]:
    """A long document cut at line ends, with whether the piece begins it."""
    begin = 0
    while begin < len(text) or begin == 0:
        end = begin + _CHARACTERS_AT_ONCE
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield begin == 0, text[begin:end]
        begin = end


def _random_windows(
    stream: Tensor, num_samples: int, length: int, seed: int, source: str, purpose: str
) -> CalibrationTokens:
    if len(stream) == 0:
        raise SecateurError(f"{purpose} is empty: {source} holds no text")
    if len(stream) < length:
        raise SecateurError(
            f"{purpose} is too short: {source} gives {len(stream)} tokens, but one window of "
            f"max_seq_length needs {length}; give more text or a smaller max_seq_length"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(stream) - length + 1, (num_samples,), generator=generator)
    spans = tuple((start, start + length) for start in starts.tolist())
    windows = [stream[start:end].clone() for start, end in spans]
    return replace(checked_tokens(windows, source), spans=spans)


def read_texts(source: str | Path) -> Iterator[str]:
    """The documents of a calibration source, one after another.

    Raises:
        SecateurError: there is no such source, or it cannot be read as text.
    """
    return texts.read_texts(source, "calibration")
