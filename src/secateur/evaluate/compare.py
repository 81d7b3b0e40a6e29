"""How much worse a model is than its baseline, with the uncertainty of the difference.

Both models see the same windows or items, so differences are taken pair by pair: what makes a
text hard for both cancels, and the error is much smaller than that of either number alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from secateur.errors import QualityDropError, SecateurError
from secateur.evaluate.perplexity import PerplexityResult
from secateur.evaluate.result import Estimate, TaskResult, exp_estimate, mean_estimate


@dataclass(frozen=True)
class Drop:
    """By how much one metric got worse; negative where it got better."""

    metric: str
    baseline: float
    other: float
    drop: float
    """Relative, other / baseline - 1, where lower is better (perplexity); else absolute,
    baseline - other (accuracy)."""
    standard_error: float
    """Of `drop`, in its unit; NaN where it cannot be known."""
    is_relative: bool

    def __str__(self) -> str:
        kind = "%" if self.is_relative else " points"
        by = f"{100 * self.drop:+.2f} ± {100 * self.standard_error:.2f}{kind} worse"
        return f"{self.metric}: {self.baseline:.4g} -> {self.other:.4g}, {by}"


def compare_perplexity(
    baseline: PerplexityResult, other: PerplexityResult, name: str = "perplexity"
) -> Drop:
    """Relative change of perplexity, from the difference of the losses window by window.

    The error of the difference d of mean losses is over paired windows; that of the ratio exp(d)
    is exp(d) times as large (delta method).

    Raises:
        SecateurError: not the same windows, or a baseline that is not finite.
    """
    left = (len(baseline.window_losses), baseline.max_seq_length)
    right = (len(other.window_losses), other.max_seq_length)
    if left != right:
        raise SecateurError(
            f"expected {left[0]} windows of {left[1]} tokens as in the baseline, "
            f"but got {right[0]} of {right[1]}"
        )
    if baseline.tokens_sha256 != other.tokens_sha256:
        raise SecateurError(
            f"expected the same tokens for {name} as in the baseline, but they differ: are the "
            "tokenizers of different models?"
        )
    values = (baseline.perplexity, other.perplexity)
    _check_baseline(name, baseline.perplexity)
    return _relative_drop(name, values, _exp_paired(baseline.window_losses, other.window_losses))


def compare_task(baseline: TaskResult, other: TaskResult, metric: str = "acc") -> Drop:
    """Change of one metric: absolute for an accuracy, relative where lower is better.

    The error is over paired items where both results have them, else that of two independent
    results, which is larger.

    Raises:
        SecateurError: not the same task and items, or a metric that one does not have.
    """
    _check_same_task(baseline, other, metric)
    name = f"{baseline.name} {metric}"
    (value, _), (other_value, _) = baseline.metrics[metric], other.metrics[metric]
    if metric in baseline.lower_is_better:
        _check_baseline(name, value)
        return _relative_drop(name, (value, other_value), _ratio(baseline, other, metric))
    error = _accuracy_error(baseline, other, metric)
    return Drop(name, value, other_value, value - other_value, error, is_relative=False)


def check_drop(drops: Iterable[Drop], max_drop: float) -> None:
    """Refuse a model that got worse by more than is allowed.

    Args:
        max_drop: largest `Drop.drop` that passes, such as 0.05: 5% of perplexity, or 5 points of
            accuracy. Errors are reported and do not excuse anything.

    Raises:
        QualityDropError: with every metric that fell by more, or by what is not a number.
        SecateurError: a negative or infinite `max_drop`.
    """
    check_max_drop(max_drop)
    # Not `drop > max_drop`: a drop that is not a number has to fail.
    failed = [str(drop) for drop in drops if not drop.drop <= max_drop]
    if failed:
        raise QualityDropError(
            f"expected no metric to fall by more than {100 * max_drop:g}%, but got "
            + "; ".join(failed)
        )


def check_max_drop(max_drop: float) -> None:
    """Refuse a negative or infinite largest drop."""
    if not 0 <= max_drop < math.inf:
        raise SecateurError(f"expected a largest drop of 0 or more, but got {max_drop}")


def _check_baseline(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SecateurError(f"expected a baseline with a finite {name}, but it is {value}")


def _relative_drop(name: str, values: tuple[float, float], ratio: Estimate) -> Drop:
    return Drop(name, *values, ratio.value - 1, ratio.standard_error, is_relative=True)


def _differences(left: tuple[float, ...], right: tuple[float, ...]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _exp_paired(before: tuple[float, ...], after: tuple[float, ...]) -> Estimate:
    return exp_estimate(_differences(after, before))


def _ratio(baseline: TaskResult, other: TaskResult, metric: str) -> Estimate:
    """other / baseline: paired over items, or from the errors of both."""
    if metric in baseline.per_item and metric in other.per_item:
        return _exp_paired(baseline.per_item[metric], other.per_item[metric])
    before, after = baseline.metrics[metric], other.metrics[metric]
    ratio = after.value / before.value
    errors = (after.standard_error, ratio * before.standard_error)
    return Estimate(ratio, math.hypot(*errors) / before.value)


def _accuracy_error(baseline: TaskResult, other: TaskResult, metric: str) -> float:
    if metric in baseline.per_item and metric in other.per_item:
        differences = _differences(baseline.per_item[metric], other.per_item[metric])
        return mean_estimate(differences).standard_error
    errors = (result.metrics[metric].standard_error for result in (baseline, other))
    return math.hypot(*errors)


def _check_same_task(baseline: TaskResult, other: TaskResult, metric: str) -> None:
    left, right = (baseline.name, baseline.num_items), (other.name, other.num_items)
    if left != right:
        raise SecateurError(
            f"expected {left[1]} items of {left[0]} as in the baseline, "
            f"but got {right[1]} of {right[0]}"
        )
    for which, result in (("baseline", baseline), ("other result", other)):
        if metric not in result.metrics:
            raise SecateurError(
                f"expected {metric} in the {which} of {result.name}, "
                f"but it has {', '.join(result.metrics)}"
            )
