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
    scratch = (min(chunk, flat.numel()),)
    beats_right = torch.empty(scratch, dtype=torch.bool, device=score.device)
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        _count_wins(part, keep, group, mask[start : start + chunk], beats_right[: len(part)])
    return mask.view(score.shape)


def _count_wins(score: Tensor, keep: int, group: int, mask: Tensor, beats_right: Tensor) -> None:
    """Count for every score how many of its group it beats, one byte a score, a word a group.

    A score beats one to its right if it is at least as large, and one to its left if it is
    larger: that is what makes ties keep the lower column. Comparing the flat tensor with itself
    shifted by 1, 2, ... gives all comparisons at full vector width; those that cross a group's
    end are masked away. Counts of a whole group are then added in one integer operation.

    Args:
        score: [n], n divisible by `group`.
        keep: of `group`.
        group: 2, 4 or 8.
        mask: bool [n], written.
        beats_right: bool [n], for scratch.
    """
    wins, packed = mask.view(_WORDS[group]), beats_right.view(_WORDS[group])
    # Byte b starts at b: it beats all b scores to its left, until one turns out to be as large.
    # Bit 3 is to be set where wins >= group - keep: the offset brings that limit to 8.
    wins.fill_(_bytes([b + 8 - (group - keep) for b in range(group)]))
    for distance in range(1, group):
        torch.ge(score[:-distance], score[distance:], out=beats_right[:-distance])
        packed.bitwise_and_(_bytes([1] * (group - distance)))
        # A win for the byte itself, and one less for the byte `distance` further up.
        wins.add_(packed, alpha=1 - (1 << (8 * distance)))
    wins.bitwise_right_shift_(3).bitwise_and_(_bytes([1] * group))


def _bytes(values: list[int] | range) -> int:
    """An integer whose byte b, counted from the lowest, is values[b]."""
    return sum(value << (8 * position) for position, value in enumerate(values))


def _select_by_sorting(score: Tensor, keep: int, group: int) -> Tensor:
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(1, order[:, :keep], True).view(score.shape)
