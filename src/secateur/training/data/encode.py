"""Windows of a text in whichever format it has."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from secateur.errors import SecateurError
from secateur.training.data.blocks import Tally, WindowBlock
from secateur.training.data.conversations import resolve_format
from secateur.training.data.encode_chat import chat_windows, check_tokenizer
from secateur.training.data.encode_text import text_windows
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import Tokenizer
from secateur.training.data.training_data import check_token


@dataclass(frozen=True)
class Encoder:
    """Makes the windows of a text, again and again if need be."""

    text: TrainingText
    tokenizer: Tokenizer
    format: Literal["text", "chat"]
    vocab_size: int | None = None

    def windows(self, tally: Tally) -> Iterator[WindowBlock]:
        """All windows in order.

        Raises:
            SecateurError: a source cannot be read, gives no window, or a token id is outside the
                vocabulary.
        """
        make = chat_windows if self.format == "chat" else text_windows
        blocks = make(self.text, self.tokenizer, tally)
        yield from _within(blocks, self.vocab_size, self.text.name)
        if tally.num_tokens == 0:
            raise SecateurError(_too_short(self.text, tally))


def make_encoder(text: TrainingText, tokenizer: Tokenizer, vocab_size: int | None) -> Encoder:
    """The encoder for a text; its first row may have to be read for that.

    Raises:
        SecateurError: a source cannot be read, or the tokenizer is no use for the format.
    """
    chosen = resolve_format(text)
    if chosen == "chat":
        check_tokenizer(tokenizer)
    return Encoder(text, tokenizer, chosen, vocab_size)


def _within(
    blocks: Iterable[WindowBlock], vocab_size: int | None, source: str
) -> Iterator[WindowBlock]:
    """The same windows, refused as soon as a token id is outside the vocabulary."""
    for block in blocks:
        if vocab_size is not None:
            check_token(int(block.tokens.max(initial=0)), vocab_size, source)
        yield block


def _too_short(text: TrainingText, tally: Tally) -> str:
    if tally.num_documents == 0:
        return f"training text is empty: {text.name} holds no text"
    if tally.num_dropped:
        return (
            f"training text has nothing to learn: none of the {tally.num_documents} examples of "
            f"{text.name} has a response that begins within {text.max_seq_length} tokens "
            "(max_seq_length)"
        )
    return (
        f"training text is too short: {text.name} gives {tally.num_read} tokens, but one window "
        f"of max_seq_length needs {text.max_seq_length}; give more text or a smaller "
        "max_seq_length"
    )
