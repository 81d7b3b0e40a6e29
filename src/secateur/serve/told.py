"""What a client is told of one sequence, piece by piece and as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.engine import Piece, Result
from secateur.serve.bodies import Choice, TokenLogprob
from secateur.serve.token_texts import TokenPlaces, TokenTexts


@dataclass(frozen=True)
class Delta:
    """What is new of one sequence of an answer."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None
    """None where nobody asked."""
    choice: Choice | None
    """The whole sequence, once it is finished."""

    @property
    def says_something(self) -> bool:
        """Whether a client should see it."""
        return bool(self.text or self.logprobs or self.choice)


class Told:
    """One sequence: its text, behind its prompt's if that is to be echoed."""

    def __init__(
        self, index: int, prompt: Sequence[int], texts: TokenTexts, logprobs: bool, echo: str | None
    ) -> None:
        """Nothing was told yet.

        Args:
            index: of the sequence in its answer.
            prompt: tokens.
            texts: of the model's tokens.
            logprobs: whether each token is told, with its log-probability.
            echo: the prompt's text if it is to be told as well.
        """
        self._index = index
        self._first = prompt[0]
        self._echo = echo
        self._places = TokenPlaces(texts, () if echo is not None else prompt) if logprobs else None
        self._logprobs: list[TokenLogprob] = []
        self._begun = False

    def delta(self, piece: Piece) -> Delta:
        """What a piece adds."""
        text, logprobs = piece.text, None
        begins, self._begun = not self._begun, True
        if self._places is not None:
            echoes = begins and self._echo is not None
            first = (self._places.unscored(self._first),) if echoes else ()
            logprobs = (*first, *self._places.scored((*piece.prompt_scores, *piece.scores)))
            self._logprobs += logprobs
        if begins:
            text = (self._echo or "") + text
        return Delta(self._index, text, logprobs, None)

    def choice(self, result: Result, reason: str, prompt_tokens: int) -> Choice:
        """All of it, once its last piece was told.

        Args:
            result: of the sequence.
            reason: why it ended, in the API's words.
            prompt_tokens: that are counted.
        """
        return Choice(
            index=self._index,
            text=(self._echo or "") + result.text,
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(result.token_ids),
            logprobs=None if self._places is None else tuple(self._logprobs),
        )
