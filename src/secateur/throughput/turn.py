"""When the tokens of one batch came, and what several such turns amount to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from secateur.errors import SecateurError
from secateur.report.throughput_record import RunnerName, Spread, ThroughputMeasurement
from secateur.throughput.statistics import quantile


@dataclass(frozen=True)
class Workload:
    """What every model has to do in a turn."""

    batch_size: int
    prompt_length: int
    """Tokens."""
    new_tokens: int
    """Of each sequence."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.prompt_length, self.new_tokens) < 1:
            raise SecateurError(f"expected a workload of at least 1 everywhere, got {self}")


@dataclass(frozen=True)
class Turn:
    """One batch, once through one model."""

    arrivals: tuple[tuple[float, ...], ...]
    """Seconds from the start of the batch to each new token, by sequence."""
    peak_memory_bytes: int | None = None

    @property
    def prefill_seconds(self) -> float:
        """Until the last sequence has its first token."""
        return max(times[0] for times in self.arrivals)

    @property
    def seconds(self) -> float:
        """Until the last token of all."""
        return max(times[-1] for times in self.arrivals)

    def gaps(self) -> list[float]:
        """Between two tokens of a sequence, once the last prompt was done.

        Not those that came with the last first token, where a step hands out several.
        """
        begun = self.prefill_seconds
        return [
            later - earlier
            for times in self.arrivals
            for earlier, later in pairwise(times)
            if earlier >= begun and later > begun
        ]

    def decode_tokens_per_second(self) -> float | None:
        """Tokens that came after the last prompt was done; None if there are none."""
        begun = self.prefill_seconds
        later = sum(moment > begun for times in self.arrivals for moment in times)
        return later / (self.seconds - begun) if later else None


def check_turn(turn: Turn, workload: Workload, name: str) -> None:
    """Raise SecateurError unless every sequence of a turn got all its tokens."""
    counts = [len(times) for times in turn.arrivals]
    if counts != [workload.new_tokens] * workload.batch_size:
        raise SecateurError(
            f"expected {workload.new_tokens} tokens of each of {workload.batch_size} sequences "
            f"from {name}, got {counts}"
        )


def summarise(
    model: str, runner: RunnerName, workload: Workload, turns: Sequence[Turn]
) -> ThroughputMeasurement:
    """The figures of one model under one workload, from its timed turns."""
    firsts = [times[0] for turn in turns for times in turn.arrivals]
    gaps = [gap for turn in turns for gap in turn.gaps()]
    prompt_tokens = workload.batch_size * workload.prompt_length
    new_tokens = workload.batch_size * workload.new_tokens
    decode = [rate for turn in turns if (rate := turn.decode_tokens_per_second()) is not None]
    peaks = [turn.peak_memory_bytes for turn in turns if turn.peak_memory_bytes is not None]
    return ThroughputMeasurement(
        model=model,
        runner=runner,
        batch_size=workload.batch_size,
        prompt_length=workload.prompt_length,
        new_tokens=workload.new_tokens,
        rounds=len(turns),
        time_to_first_token=_spread(firsts),
        time_per_output_token=_spread(gaps) if gaps else None,
        prefill_tokens_per_second=prompt_tokens / median(turn.prefill_seconds for turn in turns),
        decode_tokens_per_second=median(decode) if decode else None,
        tokens_per_second=new_tokens / median(turn.seconds for turn in turns),
        peak_memory_bytes=max(peaks) if peaks else None,
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(p50=quantile(values, 0.5), p99=quantile(values, 0.99))
