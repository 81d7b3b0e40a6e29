"""Numbers with their uncertainty: what every evaluation returns."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LOWER_IS_BETTER = frozenset({"perplexity"})


class Estimate(NamedTuple):
    """A measured value and its standard error, in the same unit.

    The error is NaN where it cannot be known: fewer than two values, or one that is not finite.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class TaskResult:
    """One model on one task."""

    name: str
    metrics: Mapping[str, Estimate]
    num_items: int
    per_item: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By metric, in the order of the items, for paired comparison: 1.0 or 0.0 for an accuracy,
    the negative log-likelihood for a perplexity. A metric may be missing here."""
    num_truncated: int = 0
    """Items that did not fit into the model's context and lost their beginning."""
    lower_is_better: frozenset[str] = LOWER_IS_BETTER
    """Metrics of which less is better; their values are positive, and are compared by ratio."""


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean of independent values, with the standard error of the mean (n - 1 in the variance).

    Accuracies get sqrt(p (1 - p) / (n - 1)), as in lm-eval. There must be at least one value.
    """
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Estimate(mean, math.nan)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Estimate(mean, math.sqrt(squares / (len(values) - 1) / len(values)))


def exp_estimate(losses: Sequence[float]) -> Estimate:
    """exp of the mean, such as a perplexity from losses; its error by the delta method."""
    mean, error = mean_estimate(losses)
    value = _exp(mean)
    return Estimate(value, value * error if math.isfinite(value) else math.nan)


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
