"""Quantiles of few times."""

import math
from collections.abc import Sequence

from secateur.errors import SecateurError


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of all are not above: always one that was seen.

    Args:
        values: at least one.
        fraction: above 0, at most 1; 0.5 is the lower median.

    Raises:
        SecateurError: there are no values, or the fraction is out of range.
    """
    if not values or not 0 < fraction <= 1:
        raise SecateurError(
            f"expected values and a fraction above 0 and at most 1, got {len(values)} values "
            f"and {fraction}"
        )
    return sorted(values)[math.ceil(fraction * len(values)) - 1]
