"""What comes out of the engine."""

from dataclasses import dataclass
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
class Result:
    """A request that is finished."""

    text: str
    """Without special tokens and without the stop string; empty without a tokenizer."""
    token_ids: tuple[int, ...]
    """Every new token, also the one that ended the text."""
    finish_reason: FinishReason
    """`eos`: a token of the model ended it; `stop`: a stop string; `length`: `max_new_tokens`."""
    prompt_tokens: int
    timing: Timing
    logprobs: tuple[float, ...] | None
    """One a token, if asked for."""


@dataclass(frozen=True)
class Piece:
    """What one step did for one request. The pieces' texts together are the result's text."""

    request_id: int
    text: str
    """Whole characters. Often empty: text that may yet become a stop string is held back."""
    token_ids: tuple[int, ...]
    result: Result | None = None
    """On the last piece of a request."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it goes on."""
        return None if self.result is None else self.result.finish_reason
