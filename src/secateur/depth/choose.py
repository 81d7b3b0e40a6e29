"""Which blocks to drop, given their scores."""

import math
from collections.abc import Mapping

from secateur.errors import SecateurError


def least_influential(scores: Mapping[int, float], count: int) -> tuple[int, ...]:
    """The `count` blocks to drop, in the order in which they go: lowest score first.

    Of equal scores the higher index goes first.

    Args:
        scores: by block that may go, what the model would lose with it.
        count: how many, from 0 to as many as may go.

    Raises:
        SecateurError: `count` is out of range, or a score is not finite.
    """
    if not 0 <= count <= len(scores):
        raise SecateurError(
            f"expected to drop between 0 and {len(scores)} blocks of those that may go, got {count}"
        )
    broken = [index for index, score in sorted(scores.items()) if not math.isfinite(score)]
    if broken:
        raise SecateurError(f"expected finite scores, those of blocks {broken} are not")
    return tuple(sorted(scores, key=lambda index: (scores[index], -index))[:count])
