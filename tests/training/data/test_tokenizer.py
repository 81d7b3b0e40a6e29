from typing import Any

import numpy as np
from byte_tokenizers import BOS, CHATML, CountingTokenizer, byte_tokenizer, ids_of

from secateur.training.data.tokenizer import (
    encode,
    first_tokens,
    token_type,
    tokenizer_identity,
)


def test_special_tokens_in_text_are_text() -> None:
    encoded = encode(byte_tokenizer(adds_bos=True), ["a</s>", ""])
    assert [ids.tolist() for ids in encoded] == [ids_of("a</s>"), []]
    assert all(ids.dtype == np.int64 for ids in encoded)


def test_what_begins_a_text() -> None:
    assert first_tokens(byte_tokenizer(adds_bos=True)).tolist() == [BOS]
    assert first_tokens(byte_tokenizer()).tolist() == []

    class SaysNothing(CountingTokenizer):
        def __call__(self, text: Any, **options: Any) -> Any:
            return {"input_ids": [[] for _ in text]}

    tokenizer = byte_tokenizer()
    tokenizer.__class__ = SaysNothing
    assert first_tokens(tokenizer).tolist() == []


def test_smallest_type_that_holds_all_ids() -> None:
    tokenizer = byte_tokenizer()
    assert token_type(tokenizer) is np.uint16
    tokenizer.add_tokens([f"<{number}>" for number in range((1 << 16) - len(tokenizer))])
    assert max(tokenizer.get_vocab().values()) == (1 << 16) - 1
    assert token_type(tokenizer) is np.uint16
    tokenizer.add_tokens(["<more>"])
    assert token_type(tokenizer) is np.uint32


def test_identity_is_what_a_tokenizer_does() -> None:
    made = [
        byte_tokenizer(),
        byte_tokenizer(merges=[("a", "b")]),
        byte_tokenizer(merges=[("b", "a")]),
        byte_tokenizer(adds_bos=True),
        byte_tokenizer(has_eos=False),
        byte_tokenizer(template=CHATML),
        byte_tokenizer(template=CHATML + " "),
    ]
    with_token = byte_tokenizer()
    with_token.add_tokens(["new"])
    other_pad = byte_tokenizer()
    other_pad.pad_token = "</s>"
    other_bos = byte_tokenizer()
    other_bos.bos_token = "<pad>"
    made += [with_token, other_pad, other_bos]
    assert len({tokenizer_identity(tokenizer) for tokenizer in made}) == 10
    again = byte_tokenizer()
    again(["abc", "d"], padding=True, truncation=True, max_length=2)
    assert tokenizer_identity(again) == tokenizer_identity(made[0])


class PlainTokenizer:
    """One without a backend of its own."""

    chat_template = None
    eos_token_id = 1
    pad_token_id = None

    def __init__(self, words: list[str], **options: Any) -> None:
        self.words = words
        self.init_kwargs = options

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def test_identity_without_a_backend() -> None:
    made: list[Any] = [
        PlainTokenizer(["a", "b"]),
        PlainTokenizer(["b", "a"]),
        PlainTokenizer(["a", "b"], do_lower_case=True),
    ]
    assert len(set(map(tokenizer_identity, made))) == 3
    moved: Any = PlainTokenizer(["a", "b"], vocab_file="/elsewhere")
    assert tokenizer_identity(moved) == tokenizer_identity(made[0])
