"""Several matrices of one input (q/k/v, gate/up) with one shared `down`.

Their rows are stacked and decomposed as one matrix: `down` is stored and multiplied once, and the
break-even rank is that of the stack.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from secateur.lowrank.factors import Factors
from secateur_kernels.errors import SecateurError


def stack_rows(weights: Sequence[Tensor], importance: Sequence[float] | None = None) -> Tensor:
    """One below the other, to be decomposed as one matrix.

    Args:
        weights: [N_i, K] each.
        importance: what a unit of squared error of each weight counts; all 1 by default. A
            matrix with large outputs else takes the rank away from one with small ones.

    Returns:
        [sum of N_i, K]: sqrt(importance_i) * weight_i.

    Raises:
        SecateurError: no weights, different K, or an importance that is not positive.
    """
    if not weights or len({weight.shape[1:] for weight in weights}) > 1:
        raise SecateurError(
            "expected weights [N_i, K] of one input, "
            f"got {[list(weight.shape) for weight in weights]}"
        )
    scales = _scales(importance, len(weights))
    return torch.cat([weight * scale for weight, scale in zip(weights, scales, strict=True)])


def split_rows(
    factors: Factors, rows: Sequence[int], importance: Sequence[float] | None = None
) -> list[Factors]:
    """Factors of a stack as one `up` a matrix and the very same `down` for all.

    Args:
        factors: of `stack_rows(weights, importance)`.
        rows: N_i of each weight.
        importance: as it was given to `stack_rows`.

    Raises:
        SecateurError: the rows do not add up to the stack's.
    """
    if sum(rows) != factors.shape[0] or any(count < 1 for count in rows):
        raise SecateurError(
            f"expected rows that add up to the {factors.shape[0]} of the stack, got {list(rows)}"
        )
    scales = _scales(importance, len(rows))
    ends = [sum(rows[:count]) for count in range(len(rows) + 1)]
    return [
        Factors(factors.up[start:stop] / scale, factors.down)
        for (start, stop), scale in zip(pairwise(ends), scales, strict=True)
    ]


def _scales(importance: Sequence[float] | None, count: int) -> list[float]:
    if importance is None:
        return [1.0] * count
    if len(importance) != count or not all(0.0 < value < float("inf") for value in importance):
        raise SecateurError(f"expected {count} positive finite importances, got {list(importance)}")
    return [sqrt(value) for value in importance]
