"""keep:group patterns (2:4, 4:8, 1:4 ...): keep the best of every few consecutive columns."""

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError

# Scores treated at once: the working set stays in the processor's cache, and the fixed cost of a
# dozen calls is spread over enough of them.
_CPU_CHUNK = 1 << 20

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def select_grouped(score: Tensor, keep: int, group: int) -> Tensor:
    """Keep the `keep` highest scores of every `group` consecutive columns.

    Args:
        score: [N, K] floating, finite, K divisible by `group`. Higher = keep.
        keep: 0 < keep < group.
        group: consecutive columns that compete.

    Returns:
        bool [N, K], True = keep: exactly `keep` in every group; ties keep the lower column.

    Raises:
        SecateurError: K is not divisible by `group`, or keep is out of range.
    """
    if not 0 < keep < group:
        raise SecateurError(f"expected 0 < keep < group, got keep={keep}, group={group}")
    if score.shape[-1] % group:
        raise SecateurError(
            f"expected a number of columns divisible by the group of {group}, "
            f"got score {list(score.shape)}"
        )
    if group not in _WORDS:
        return _select_by_sorting(score, keep, group)
    flat = score.contiguous().view(-1)
    chunk = _CPU_CHUNK if score.device.type == "cpu" else max(1, flat.numel())
    mask = torch.empty(flat.shape, dtype=torch.bool, device=score.device)
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        mask[start : start + chunk] = _select_by_counting(part, keep, group)
    return mask.view(score.shape)


def _select_by_counting(score: Tensor, keep: int, group: int) -> Tensor:
    """Count for every score how many of its group it beats, one byte a score, a word a group.

    A score beats one to its right if it is at least as large, and one to its left if it is
    larger: that is what makes ties keep the lower column. Comparing the flat tensor with itself
    shifted by 1, 2, ... gives all comparisons at full vector width; those that cross a group's
    end are masked away. Counts of a whole group are then added in one integer operation.
    """
    word = _WORDS[group]
    # Byte b starts at b: it beats all b scores to its left, until one turns out to be as large.
    wins: Tensor | int = _bytes(range(group))
    for distance in range(1, group):
        beats_right = torch.empty(score.shape, dtype=torch.bool, device=score.device)
        torch.ge(score[:-distance], score[distance:], out=beats_right[:-distance])
        packed = beats_right.view(word).bitwise_and_(_bytes([1] * (group - distance)))
        wins = packed + wins
        wins -= packed << (8 * distance)
    assert isinstance(wins, Tensor)
    # Bit 3 of a byte is set where wins >= group - keep: wins and the offset stay below 16.
    wins += _bytes([8 - (group - keep)] * group)
    return wins.bitwise_right_shift_(3).bitwise_and_(_bytes([1] * group)).view(torch.bool)


def _bytes(values: list[int] | range) -> int:
    """An integer whose byte b, counted from the lowest, is values[b]."""
    return sum(value << (8 * position) for position, value in enumerate(values))


def _select_by_sorting(score: Tensor, keep: int, group: int) -> Tensor:
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(1, order[:, :keep], True).view(score.shape)
