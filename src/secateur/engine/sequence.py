"""A request from its prompt to its result, as the host sees it."""

from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

from secateur.engine.options import GenerationOptions
from secateur.engine.result import FinishReason, Piece, Result, Timing
from secateur.engine.sampling import SamplingKind
from secateur.engine.text import Decoder, IncrementalText, StopStrings


@dataclass(eq=False)
class Sequence:
    """One request; `row` and the counters belong to the scheduler."""

    request_id: int
    prompt: tuple[int, ...]
    options: GenerationOptions
    decoder: Decoder | None
    eos: frozenset[int]
    submitted: float = field(default_factory=perf_counter)
    row: int | None = None
    """None while it waits, and again when its last token is on its way."""
    computed: int = 0
    """Tokens of the prompt whose keys and values are there."""
    launched: int = 0
    """New tokens that are here or on their way."""
    result: Result | None = None

    def __post_init__(self) -> None:
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._times: list[float] = []
        self._pieces: list[str] = []
        self._text = IncrementalText(self.decoder, self.prompt) if self.decoder else None
        self._stop = StopStrings(self.options.stop)

    @property
    def kind(self) -> SamplingKind:
        """What choosing its tokens takes."""
        options = self.options
        sampled = options.temperature > 0
        filtered = sampled and (options.top_p < 1 or options.top_k > 0)
        return SamplingKind(sampled, filtered, options.logprobs)

    @property
    def is_prefilled(self) -> bool:
        """Whether its whole prompt is computed."""
        return self.computed == len(self.prompt)

    @property
    def length(self) -> int:
        """Positions that are in use when the tokens launched so far are computed."""
        return len(self.prompt) + self.launched

    def take(self, token_id: int, logprob: float | None, when: float) -> Piece:
        """Add a token that has reached the host."""
        self._token_ids.append(token_id)
        self._times.append(when)
        if logprob is not None and self.options.logprobs:
            self._logprobs.append(logprob)
        if token_id in self.eos and not self.options.ignore_eos:
            # Its text is empty by rights: tokens that end a text are special.
            return self._finished("eos", (token_id,), self._rest())
        text = self._stop.add(self._text.add(token_id)) if self._text else ""
        if self._stop.found:
            return self._finished("stop", (token_id,), text)
        if len(self._token_ids) == self.options.max_new_tokens:
            text += self._rest()
            reason: FinishReason = "stop" if self._stop.found else "length"
            return self._finished(reason, (token_id,), text)
        self._pieces.append(text)
        return Piece(self.request_id, text, (token_id,))

    def cancelled(self) -> Piece:
        """End it as it is."""
        return self._finished("cancelled", (), self._rest())

    def _rest(self) -> str:
        text = self._stop.add(self._text.flush()) if self._text else ""
        return text + self._stop.flush()

    def _finished(self, reason: FinishReason, token_ids: tuple[int, ...], text: str) -> Piece:
        self._pieces.append(text)
        self.result = Result(
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            prompt_tokens=len(self.prompt),
            timing=self._timing(),
            logprobs=tuple(self._logprobs) if self.options.logprobs else None,
        )
        return Piece(self.request_id, text, token_ids, self.result)

    def _timing(self) -> Timing:
        times = self._times
        ttft = times[0] - self.submitted if times else float("nan")
        gaps = (after - before for before, after in pairwise(times))
        return Timing(ttft, tuple(gaps))
