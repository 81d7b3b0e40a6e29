"""What evaluation asks of a tokenizer; every tokenizer of transformers has it."""

from typing import Protocol


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if there is one."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, if there is one."""

    def encode(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> list[int]:
        """Token ids of a text; `verbose` allows warnings about its length."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The text that the token ids stand for."""
