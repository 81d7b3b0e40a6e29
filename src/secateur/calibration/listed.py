"""Rows of text, of conversations or of token ids, as lists and datasets hold them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.calibration.tokens import CalibrationTokens, checked_tokens, tokens_from_tensor
from secateur.errors import SecateurError
from secateur.texts.documents import split_documents
from secateur.texts.rows import Row, text_of
from secateur.texts.sources import read_rows


def holds_tokens(sample: object) -> bool:
    """Whether a sample is token ids, alone or in a row of a dataset."""
    if isinstance(sample, Mapping):
        return "input_ids" in sample
    if isinstance(sample, list | tuple):
        return bool(sample) and all(isinstance(token, int) for token in sample)
    return isinstance(sample, Tensor | np.ndarray)


def tokens_one_by_one(samples: Sequence[Any]) -> CalibrationTokens:
    """Token ids as they are, padding removed.

    Args:
        samples: each [length] or [samples, length], or a mapping with `input_ids` and maybe
            `attention_mask` of such a shape.

    Raises:
        SecateurError: as `tokens_from_tensor`, or a sample holds no ids.
    """
    found: list[Tensor] = []
    for number, sample in enumerate(samples):
        row = sample if isinstance(sample, Mapping) else {"input_ids": sample}
        if "input_ids" not in row:
            raise SecateurError(
                f"expected `input_ids` in every calibration sample, as in the first one, but "
                f"sample {number} has the keys {sorted(map(str, row))}"
            )
        mask = row.get("attention_mask")
        ids, kept = (None if t is None else _rows_of(t) for t in (row["input_ids"], mask))
        assert ids is not None
        found += tokens_from_tensor(ids, kept).samples
    return checked_tokens(found, f"{len(samples)} samples of token ids")


def _rows_of(values: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        raise SecateurError(f"expected calibration token ids, got {str(values)[:60]}") from error
    return tensor.unsqueeze(0) if tensor.ndim == 1 else tensor


def documents_of(
    source: str | Path | Iterable[Any], tokenizer: Any, purpose: str
) -> Iterator[tuple[str, bool]]:
    """Texts, each with whether it still lacks the special tokens that begin it.

    Lines of `<|endoftext|>` stand between the documents of one text where the tokenizer has no such
    token.

    Args:
        source: where rows are read from, or the rows.
        tokenizer: of the model; its chat template makes text of `messages`.
        purpose: what the text is for, for messages.

    Raises:
        SecateurError: a row holds no text, or its `messages` cannot be read.
    """
    rows = (
        read_rows(source, purpose)
        if isinstance(source, str | Path)
        else (Row(purpose, "text", n, value) for n, value in enumerate(source, start=1))
    )

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    for row in rows:
        if isinstance(row.value, Mapping) and "messages" in row.value:
            # A template writes the special tokens itself.
            yield _conversation(row, tokenizer), False
        else:
            yield from ((part, True) for part in split_documents(text_of(row), count_tokens))


def _conversation(row: Row, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise SecateurError(
            f"{row.place}: the tokenizer has no chat template, so that `messages` cannot be read"
        )
    try:
        return str(tokenizer.apply_chat_template(row.value["messages"], tokenize=False))  # type: ignore[index]
    except Exception as error:  # templates are programs that come with the model
        raise SecateurError(
            f"{row.place}: the tokenizer's chat template refuses these messages: {error}"
        ) from None
