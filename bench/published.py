"""What the published code does, as its authors run it: what ours is measured against."""

import torch
from torch import Tensor


def wanda_two_of_four(score: Tensor) -> Tensor:
    """bool [N, K], True = keep: the two lowest of every four columns go, group by group.

    The loop over groups of Wanda's repository (Sun et al., arXiv 2306.11695).
    """
    removed = torch.zeros_like(score) == 1
    for column in range(0, score.shape[1], 4):
        lowest = torch.topk(score[:, column : column + 4].float(), 2, dim=1, largest=False).indices
        removed.scatter_(1, column + lowest, True)
    return ~removed


def wanda_half_of_each_row(score: Tensor) -> Tensor:
    """bool [N, K], True = keep: half of every row by a stable sort, as that repository does."""
    order = torch.sort(score, dim=-1, stable=True).indices
    removed = torch.zeros_like(score) == 1
    removed.scatter_(1, order[:, : score.shape[1] // 2], True)
    return ~removed
