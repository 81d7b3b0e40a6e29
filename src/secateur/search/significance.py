"""Means and differences of means over items that may hang together."""

import math
from collections.abc import Sequence

from secateur.errors import SecateurError
from secateur.evaluate.result import Estimate
from secateur.report.search_record import ChangeRecord


def clustered_mean(values: Sequence[float], units: Sequence[int]) -> Estimate:
    """Mean over items; the standard error is over units, whose items are not independent.

    The error is sqrt(U / (U - 1) * sum_u (sum of (value - mean) in u)^2) / n, which is that of
    `mean_estimate` where every unit has one item.

    Args:
        values: by item, at least one.
        units: by item.
    """
    total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    mean = total / len(values)
    sums: dict[int, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        sums.setdefault(unit, []).append(value - mean)
    if len(sums) < 2 or not math.isfinite(mean):
        return Estimate(mean, math.nan)
    squares = math.fsum(math.fsum(deviations) ** 2 for deviations in sums.values())
    number = len(sums)
    return Estimate(mean, math.sqrt(number / (number - 1) * squares) / len(values))


def paired_change(
    before: Sequence[float],
    after: Sequence[float],
    units: Sequence[int],
    lower_is_better: bool,
) -> ChangeRecord:
    """How much better `after` is, item by item, and whether that can be chance.

    Values that are all 0 or 1, one a unit, are tested by McNemar's exact test; anything else by
    the mean of the differences over its standard error, as normal.

    Args:
        before: of the dense model, by item.
        after: of the other one, on the same items.
        units: by item.
        lower_is_better: whether an improvement is a smaller value.

    Raises:
        SecateurError: not the same number of items.
    """
    if not len(before) == len(after) == len(units):
        raise SecateurError(
            f"expected values of the same items, but got {len(before)}, {len(after)} and units of "
            f"{len(units)}"
        )
    sign = -1.0 if lower_is_better else 1.0
    differences = [sign * (b - a) for a, b in zip(before, after, strict=True)]
    improvement, error = clustered_mean(differences, units)
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    is_binary = {*before, *after} <= {0.0, 1.0} and len(set(units)) == len(units)
    return ChangeRecord(
        improvement=improvement,
        standard_error=error,
        num_better=better,
        num_worse=worse,
        p_value=_mcnemar(better, worse) if is_binary else _normal(improvement, error),
        method="McNemar, exact" if is_binary else "paired differences",
    )


def _mcnemar(better: int, worse: int) -> float:
    """Two-sided binomial p-value of a fair coin that fell `better` times one way."""
    number, fewer = better + worse, min(better, worse)
    tail: int = sum(math.comb(number, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << number))


def _normal(mean: float, error: float) -> float:
    if mean == 0:
        return 1.0
    if not error > 0 or not math.isfinite(mean):
        return math.nan
    return math.erfc(abs(mean) / error / math.sqrt(2))
