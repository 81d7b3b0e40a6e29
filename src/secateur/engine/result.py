"""What comes out of the engine."""

from dataclasses import dataclass, replace
from typing import Literal

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class Timing:
    """When tokens reached the host, in seconds."""

    ttft: float
    """From `submit` to the first token; NaN without one."""
    token_seconds: tuple[float, ...]
    """Between one token and the next: one less than there are tokens."""


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probability, natural, at temperature 1."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place and theirs, the likeliest first; as many as asked for."""

    def with_top(self, count: int) -> "ScoredToken":
        """The same with no more than `count` of the likeliest."""
        return replace(self, top=self.top[:count])


@dataclass(frozen=True)
class Result:
    """A request that is finished."""

    text: str
    """Without special tokens and without the stop string; empty without a tokenizer."""
    token_ids: tuple[int, ...]
    """Every new token, also the one that ended the text."""
    finish_reason: FinishReason
    """`eos`: a token of the model ended it; `stop`: a string or token of the options; `length`:
    `max_new_tokens`."""
    prompt_tokens: int
    timing: Timing
    scores: tuple[ScoredToken, ...] | None
    """One a token, if asked for."""
    prompt_scores: tuple[ScoredToken, ...] | None = None
    """One for each token of the prompt but the first, if asked for."""

    @property
    def logprobs(self) -> tuple[float, ...] | None:
        """Log-probabilities alone, one a token, if asked for."""
        return None if self.scores is None else tuple(one.logprob for one in self.scores)


@dataclass(frozen=True)
class Piece:
    """What one step did for one request. The pieces' texts together are the result's text."""

    request_id: int
    text: str
    """Whole characters. Often empty: text that may yet become a stop string is held back."""
    token_ids: tuple[int, ...]
    result: Result | None = None
    """On the last piece of a request."""
    scores: tuple[ScoredToken, ...] = ()
    """One a token, if asked for."""
    prompt_scores: tuple[ScoredToken, ...] = ()
    """On the first piece, as `Result.prompt_scores`."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it goes on."""
        return None if self.result is None else self.result.finish_reason
