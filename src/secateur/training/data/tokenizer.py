"""What training data asks of a tokenizer; every fast tokenizer of transformers has it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int64]


class Tokenizer(Protocol):
    """Texts to token ids."""

    chat_template: Any
    """Jinja text, or None."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, if there is one."""

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills what is short, if there is one."""

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """A mapping with `input_ids`, a list of ids for each text."""

    def apply_chat_template(self, conversation: Sequence[Any], **options: Any) -> Any:
        """A conversation as the text that the model sees."""


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[TokenIds]:
    """Token ids of each text and nothing around them.

    A special token's name that stands in a text is encoded as the text it is there.
    """
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]


def first_tokens(tokenizer: Tokenizer) -> TokenIds:
    """What the tokenizer puts before a text: a beginning-of-sequence token, or nothing."""
    plain = encode(tokenizer, ["a"])[0].tolist()
    options = {"add_special_tokens": True, "return_attention_mask": False, "verbose": False}
    whole = list(tokenizer(["a"], **options)["input_ids"][0])
    for start in range(len(whole)):
        if plain and whole[start : start + len(plain)] == plain:
            return np.asarray(whole[:start], dtype=np.int64)
    return np.empty(0, dtype=np.int64)


def token_type(tokenizer: Tokenizer) -> type[np.unsignedinteger[Any]]:
    """The smallest of uint16 and uint32 that holds every token id."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    return np.uint16 if largest < 1 << 16 else np.uint32


def tokenizer_identity(tokenizer: Tokenizer) -> str:
    """Hex digest of all that decides what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = [sorted(tokenizer.get_vocab().items()), _plain_options(tokenizer)]
    else:
        content = json.loads(backend.to_str())
        # These change with every call that pads or truncates.
        content = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
    facts = [
        type(tokenizer).__name__,
        content,
        tokenizer.chat_template,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        # Chat templates are given these names.
        getattr(tokenizer, "special_tokens_map", None),
    ]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain_options(tokenizer: Tokenizer) -> dict[str, str]:
    options = getattr(tokenizer, "init_kwargs", {})
    return {name: str(value) for name, value in options.items() if "file" not in name}
