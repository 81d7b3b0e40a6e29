"""A request from its prompt to its result, as the host sees it."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter

from secateur.engine.options import GenerationOptions
from secateur.engine.result import FinishReason, Piece, Result, ScoredToken, Timing
from secateur.engine.sampling import SamplingKind
from secateur.engine.text import Decoder, IncrementalText, StopStrings
from secateur.engine.transfer import Readback


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
    prompt_readbacks: list[Readback] = field(default_factory=list)
    """Scores of the prompt's tokens, in their order, on their way."""

    def __post_init__(self) -> None:
        self._token_ids: list[int] = []
        self._scores: list[ScoredToken] = []
        self._prompt_scores: tuple[ScoredToken, ...] = ()
        self._times: list[float] = []
        self._pieces: list[str] = []
        self._text = IncrementalText(self.decoder, self.prompt) if self.decoder else None
        self._stop = StopStrings(self.options.stop)

    @property
    def kind(self) -> SamplingKind:
        """What choosing its tokens takes."""
        options = self.options
        sampled = options.temperature > 0
        filtered = sampled and (options.top_p < 1 or options.top_k > 0 or options.min_p > 0)
        return SamplingKind(sampled, filtered, options.logprobs, options.penalizes)

    @property
    def is_prefilled(self) -> bool:
        """Whether its whole prompt is computed."""
        return self.computed == len(self.prompt)

    @property
    def length(self) -> int:
        """Positions that are in use when the tokens launched so far are computed."""
        return len(self.prompt) + self.launched

    def take(self, token_id: int, score: ScoredToken | None, when: float) -> Piece:
        """Add a token that has reached the host; where none is wanted, it says no more than that.

        Args:
            token_id: behind the prompt and the tokens so far.
            score: of this token, whoever wanted it.
            when: it came, in seconds of `perf_counter`.
        """
        prompt_scores = () if self._token_ids else self._scores_of_prompt()
        if self.options.max_new_tokens == 0:
            return replace(self._finished("length", (), ""), prompt_scores=prompt_scores)
        self._token_ids.append(token_id)
        self._times.append(when)
        scores: tuple[ScoredToken, ...] = ()
        if score is not None and self.options.logprobs:
            scores = (score.with_top(self.options.top_logprobs),)
            self._scores += scores
        return replace(self._piece(token_id), scores=scores, prompt_scores=prompt_scores)

    def _piece(self, token_id: int) -> Piece:
        """What the newest token adds to the text, and whether it ends it."""
        if token_id in self.eos and not self.options.ignore_eos:
            # Its text is empty by rights: tokens that end a text are special.
            return self._finished("eos", (token_id,), self._rest())
        text = self._stop.add(self._text.add(token_id)) if self._text else ""
        if self._stop.found:
            return self._finished("stop", (token_id,), text)
        if token_id in self.options.stop_token_ids:
            return self._finished("stop", (token_id,), text + self._rest())
        if len(self._token_ids) == self.options.max_new_tokens:
            text += self._rest()
            reason: FinishReason = "stop" if self._stop.found else "length"
            return self._finished(reason, (token_id,), text)
        self._pieces.append(text)
        return Piece(self.request_id, text, (token_id,))

    def _scores_of_prompt(self) -> tuple[ScoredToken, ...]:
        """Those that came with its chunks; once the first token is here, so are they."""
        found = [score for readback in self.prompt_readbacks for score in readback.wait()[1] or ()]
        self.prompt_readbacks.clear()
        self._prompt_scores = tuple(one.with_top(self.options.top_logprobs) for one in found)
        return self._prompt_scores

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
            scores=tuple(self._scores) if self.options.logprobs else None,
            prompt_scores=self._prompt_scores if self.options.prompt_logprobs else None,
        )
        return Piece(self.request_id, text, token_ids, self.result)

    def _timing(self) -> Timing:
        times = self._times
        ttft = times[0] - self.submitted if times else float("nan")
        gaps = (after - before for before, after in pairwise(times))
        return Timing(ttft, tuple(gaps))
