"""Gradients of the low-rank product, by torch's matrix products."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def into_factors_and_input(
    gradient: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to x, down and up.

    Args:
        gradient: [M, N], of the loss with respect to the product.
        x: [M, K].
        down: [G * r, K].
        up: [N, r].
        group_rows: rows of each group.
        needs: which of x, down and up want one.
    """
    needs_x, needs_down, needs_up = needs
    rows = list(group_rows)
    by_group = list(zip(gradient.split(rows, dim=1), up.split(rows), strict=True))
    into_x = into_down = into_up = None
    if needs_x or needs_down:
        into_hidden = torch.cat([part @ factor for part, factor in by_group], dim=1)
        into_x = into_hidden @ down if needs_x else None
        into_down = into_hidden.T @ x if needs_down else None
    if needs_up:
        hidden = F.linear(x, down).split(up.shape[1], dim=1)
        parts = [part.T @ h for (part, _), h in zip(by_group, hidden, strict=True)]
        into_up = torch.cat(parts)
    return into_x, into_down, into_up
