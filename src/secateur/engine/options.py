"""How a request is to be continued."""

from dataclasses import dataclass
from numbers import Integral, Real

from secateur.errors import SecateurError

MOST_TOP_LOGPROBS = 20
MOST_PENALTY = 2.0
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class GenerationOptions:
    """What a request asks for; checked when made.

    Raises:
        SecateurError: a value is out of range, or of another type.
    """

    max_new_tokens: int = 128
    """0 reads the prompt and no more, for its log-probabilities."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, tokens are sampled."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that have this much probability together; tokens as likely
    as the last of them are kept too."""
    top_k: int = 0
    """Sample from this many likeliest tokens, and what is as likely as the last; 0: from all."""
    min_p: float = 0.0
    """Sample only what is at least this many times as likely as the likeliest token."""
    repetition_penalty: float = 1.0
    """Above 1 tokens of the prompt and of the text so far become less likely (see `penalties`)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the text so far holds."""
    frequency_penalty: float = 0.0
    """Taken off them as often as the text so far holds each."""
    seed: int = 0
    """The same request with the same seed gets the same tokens, whatever else is running."""
    stop: tuple[str, ...] = ()
    """Strings that end the text, and are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text, beside the model's own, and are part of it."""
    ignore_eos: bool = False
    """Go on after the tokens that end a text (to measure speed)."""
    logprobs: bool = False
    """Report the log-probability of every chosen token (natural logarithm, at temperature 1)."""
    top_logprobs: int = 0
    """With them those of this many likeliest tokens at each place, at most 20."""
    prompt_logprobs: bool = False
    """The same of the prompt's tokens, which is then computed in smaller chunks."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed", "top_logprobs"):
            require_whole(name, getattr(self, name))
        for name in ("temperature", "top_p", "min_p", *PENALTIES):
            _require_number(name, getattr(self, name))
        if self.max_new_tokens < 0:
            raise SecateurError(f"expected 0 new tokens or more, but got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise SecateurError(f"expected a temperature of 0 or more, but got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise SecateurError(f"expected top_p above 0 and at most 1, but got {self.top_p}")
        if self.top_k < 0:
            raise SecateurError(f"expected top_k of 0 (all tokens) or more, but got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise SecateurError(f"expected min_p from 0 to 1, but got {self.min_p}")
        self._check_penalties()
        if not 0 <= self.seed < 2**63:
            raise SecateurError(f"expected a seed from 0 to 2**63 - 1, but got {self.seed}")
        if not 0 <= self.top_logprobs <= MOST_TOP_LOGPROBS:
            raise SecateurError(
                f"expected top_logprobs from 0 to {MOST_TOP_LOGPROBS}, but got {self.top_logprobs}"
            )
        if not self.logprobs and (self.top_logprobs or self.prompt_logprobs):
            raise SecateurError("expected logprobs with top_logprobs and with prompt_logprobs")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise SecateurError(
                f"expected a tuple of stop strings, none of them empty, but got {self.stop!r}"
            )
        if not isinstance(self.stop_token_ids, tuple):
            raise SecateurError(
                f"expected stop_token_ids to be a tuple, but got {self.stop_token_ids!r}"
            )
        for token_id in self.stop_token_ids:
            require_whole("every one of stop_token_ids", token_id)

    def _check_penalties(self) -> None:
        if not 0 < self.repetition_penalty < float("inf"):
            raise SecateurError(
                f"expected repetition_penalty above 0, but got {self.repetition_penalty}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MOST_PENALTY <= getattr(self, name) <= MOST_PENALTY:
                raise SecateurError(
                    f"expected {name} from {-MOST_PENALTY:g} to {MOST_PENALTY:g}, "
                    f"but got {getattr(self, name)}"
                )

    @property
    def penalizes(self) -> bool:
        """Whether what the text holds already is chosen less, or more, than the model would."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def require_whole(name: str, value: object) -> None:
    """Raise SecateurError unless a value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise SecateurError(f"expected {name} to be a whole number, but got {value!r}")


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SecateurError(f"expected {name} to be a number, but got {value!r}")
