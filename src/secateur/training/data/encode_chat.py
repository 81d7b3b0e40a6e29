"""Conversations to windows: rendered, tokenised in batches, packed."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from secateur.errors import SecateurError
from secateur.texts.rows import Row
from secateur.training.data.blocks import Tally, WindowBlock
from secateur.training.data.conversations import Rendered, chat_rows, render
from secateur.training.data.packing import EncodedExample, packed_windows
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import TokenIds, Tokenizer, first_tokens

_CHARACTERS_AT_ONCE = 1 << 20
_EXAMPLES_AT_ONCE = 1 << 10


def chat_windows(text: TrainingText, tokenizer: Tokenizer, tally: Tally) -> Iterator[WindowBlock]:
    """Windows of examples with the loss on responses only.

    Args:
        text: of rows.
        tokenizer: one that `check_tokenizer` takes.
        tally: told what is counted.

    Raises:
        SecateurError: a source or row cannot be read.
    """
    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    examples = encoded_examples(chat_rows(text), tokenizer)
    if text.max_tokens is not None:
        examples = _first(examples, text.max_tokens)
    return packed_windows(examples, text.max_seq_length, pad, text.pack, tally)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that is no use for conversations.

    Raises:
        SecateurError: it does not tell where tokens stand, or has neither a chat template nor an
            end-of-sequence token.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SecateurError(
            "the chat format needs a fast tokenizer, which tells where in the text a token "
            f"stands; got {type(tokenizer).__name__}"
        )
    if not tokenizer.chat_template and tokenizer.eos_token_id is None:
        raise SecateurError(
            "the chat format needs a tokenizer with a chat template or an eos_token that ends "
            "responses; this one has neither"
        )


def encoded_examples(rows: Iterable[Row], tokenizer: Tokenizer) -> Iterator[EncodedExample]:
    """Tokens of each row, and which of them are the model's to write.

    A token belongs to a response if its last character does: then also the first one does, unless
    the tokenizer joins the end of a prompt with the beginning of the response.

    Raises:
        SecateurError: a row cannot be rendered.
    """
    before: TokenIds | None = None
    for batch in _batches(render(row, tokenizer) for row in rows):
        if before is None:
            before = first_tokens(tokenizer)
        yield from _encoded(batch, tokenizer, before)


def _encoded(
    batch: list[Rendered], tokenizer: Tokenizer, before: TokenIds
) -> Iterator[EncodedExample]:
    encoded = tokenizer(
        [example.text for example in batch],
        add_special_tokens=False,
        # Where there is no template, a special token's name is text, as everywhere in plain text.
        split_special_tokens=not batch[0].is_templated,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    all_ids, all_offsets = encoded["input_ids"], encoded["offset_mapping"]
    for example, ids, offsets in zip(batch, all_ids, all_offsets, strict=True):
        tokens = np.asarray(ids, dtype=np.int64)
        loss = _in_spans(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1], example.spans)
        if not example.is_templated:
            tokens = np.concatenate([before, tokens, [tokenizer.eos_token_id]])
            loss = np.concatenate([np.zeros(len(before), dtype=bool), loss, [True]])
        yield EncodedExample(tokens, loss)


def _in_spans(ends: NDArray[np.int64], spans: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    inside = np.zeros(len(ends), dtype=bool)
    for first, last in spans:
        inside |= (ends > first) & (ends <= last)
    return inside


def _first(examples: Iterable[EncodedExample], max_tokens: int) -> Iterator[EncodedExample]:
    """Up to the example that reaches `max_tokens`."""
    seen = 0
    for example in examples:
        yield example
        seen += len(example.tokens)
        if seen >= max_tokens:
            return


def _batches(examples: Iterable[Rendered]) -> Iterator[list[Rendered]]:
    batch: list[Rendered] = []
    characters = 0
    for example in examples:
        batch.append(example)
        characters += len(example.text)
        if characters >= _CHARACTERS_AT_ONCE or len(batch) == _EXAMPLES_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
