"""Tokens alone as text, for those who read log-probabilities."""

from collections.abc import Iterable, Sequence
from typing import Any

from secateur.engine import ScoredToken
from secateur.serve.bodies import TokenLogprob


class TokenTexts:
    """What a tokenizer's tokens are within a text; each is decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._texts: dict[int, str] = {}
        # Tokenizers may drop a space at the start of a text, and with it a part of the token.
        self._before = tokenizer.encode("a", add_special_tokens=False)
        self._text_before = tokenizer.decode(self._before)

    def within(self, token_id: int) -> str:
        """A token behind others; a replacement character where it is a part of a character."""
        if token_id not in self._texts:
            text = self._tokenizer.decode([*self._before, token_id])
            alone = not text.startswith(self._text_before)
            self._texts[token_id] = (
                self._tokenizer.decode([token_id]) if alone else text[len(self._text_before) :]
            )
        return self._texts[token_id]

    def at_start(self, token_id: int) -> str:
        """A token that begins a text."""
        text: str = self._tokenizer.decode([token_id])
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether texts leave it out."""
        return token_id in self._special

    def text(self, token_ids: Sequence[int]) -> str:
        """A whole text, as the engine decodes it."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


class TokenPlaces:
    """The tokens of one text as they come, each with its text and its place."""

    def __init__(self, texts: TokenTexts, before: Iterable[int]) -> None:
        """`before`: tokens in front of the text, which count no places."""
        self._texts = texts
        self._offset = 0
        self._begins = all(texts.is_special(token) for token in before)

    def unscored(self, token_id: int) -> TokenLogprob:
        """The next token, of which no more is known: nothing is in front of it."""
        return self._placed(token_id, None, None)

    def scored(self, scores: Sequence[ScoredToken]) -> tuple[TokenLogprob, ...]:
        """The next tokens."""
        return tuple(self._placed(one.token_id, one.logprob, self._top(one)) for one in scores)

    def _top(self, score: ScoredToken) -> tuple[tuple[str, float], ...]:
        return tuple((self._text(token), logprob) for token, logprob in score.top)

    def _text(self, token_id: int) -> str:
        return self._texts.at_start(token_id) if self._begins else self._texts.within(token_id)

    def _placed(
        self, token_id: int, logprob: float | None, top: tuple[tuple[str, float], ...] | None
    ) -> TokenLogprob:
        text = self._text(token_id)
        placed = TokenLogprob(token=text, logprob=logprob, top=top or (), offset=self._offset)
        if not self._texts.is_special(token_id):
            self._offset += len(text)
            self._begins = False
        return placed
