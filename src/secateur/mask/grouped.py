"""keep:group patterns (2:4, 4:8, 1:4 ...): keep the best of every few consecutive columns."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur_kernels.backends import HAS_TRITON
from secateur_kernels.errors import SecateurError
from secateur_kernels.pack24.op import pack24

# Scores treated at once: the working set stays in a core's cache, and the fixed cost of a dozen
# calls is spread over enough of them.
_CPU_CHUNK = 1 << 18
# Fewer are done before another thread has started.
_CHUNKS_PER_THREAD = 8

# Scores that the 2:4 kernel takes.
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

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
    flat = score.detach().contiguous().view(-1)
    if flat.device.type == "cpu":
        return _select_on_cpu(flat, keep, group).view(score.shape)
    if HAS_TRITON and (keep, group) == (2, 4) and flat.dtype in _KERNEL_DTYPES and flat.numel():
        return _select_by_kernel(flat).view(score.shape)
    mask = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    beats_right = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    words = _WORDS[group]
    _count_wins(flat, keep, group, beats_right, beats_right.view(words), mask.view(words), torch.ge)
    return mask.view(score.shape)


def _select_by_kernel(score: Tensor) -> Tensor:
    """Two of four in one pass; as groups do not meet, in rows as wide as the kernel's tiles."""
    rows = score.view(-1, 256 if score.numel() % 256 == 0 else 4)
    mask = pack24(rows, score=rows).keep_mask
    assert mask is not None
    return mask.view(-1)


def _select_on_cpu(score: Tensor, keep: int, group: int) -> Tensor:
    """In pieces that stay in the cache, by numpy: its comparisons take a ninth of torch's time.

    Numpy lets other threads run while it computes, so that large scores are shared among torch's
    number of threads.
    """
    wide = score if score.dtype in (torch.float32, torch.float64) else score.float()
    mask = torch.empty(score.shape, dtype=torch.bool)
    scores, kept = wide.numpy(), mask.numpy()
    starts = range(0, len(scores), _CPU_CHUNK)

    def select(worker: int, num_workers: int) -> None:
        beats_right = np.empty(min(_CPU_CHUNK, len(scores)), dtype=np.bool_)
        for start in starts[worker::num_workers]:
            part = scores[start : start + _CPU_CHUNK]
            wins = kept[start : start + _CPU_CHUNK].view(f"i{group}")
            beats = beats_right[: len(part)]
            packed = beats.view(f"i{group}")
            _count_wins(part, keep, group, beats, packed, wins, np.greater_equal)

    num_workers = min(torch.get_num_threads(), len(starts) // _CHUNKS_PER_THREAD)
    if num_workers < 2:
        select(0, 1)
        return mask
    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(select, range(num_workers), [num_workers] * num_workers))
    return mask


def _count_wins(
    score: Any,
    keep: int,
    group: int,
    beats_right: Any,
    packed: Any,
    wins: Any,
    at_least: Callable[..., Any],
) -> None:
    """Count for every score how many of its group it beats, one byte a score, a word a group.

    A score beats one to its right if it is at least as large, and one to its left if it is
    larger: that is what makes ties keep the lower column. Comparing the flat scores with
    themselves shifted by 1, 2, ... gives all comparisons at full vector width; those that cross a
    group's end are masked away. Counts of a whole group are then added in one integer operation.

    Args:
        score: [n], n divisible by `group`; tensors or numpy arrays, as all that follow.
        keep: of `group`.
        group: 2, 4 or 8.
        beats_right: bool [n], for scratch.
        packed: the same memory as integers of `group` bytes.
        wins: integers of `group` bytes, written: byte by byte the keep mask.
        at_least: >= with `out`.
    """
    # Byte b starts at b: it beats all b scores to its left, until one turns out to be as large.
    # Bit 3 is to be set where wins >= group - keep: the offset brings that limit to 8.
    wins[:] = _bytes([b + 8 - (group - keep) for b in range(group)])
    for distance in range(1, group):
        at_least(score[:-distance], score[distance:], out=beats_right[:-distance])
        packed &= _bytes([1] * (group - distance))
        # A win for the byte itself, and one less for the byte `distance` further up.
        packed *= 1 - (1 << (8 * distance))
        wins += packed
    wins >>= 3
    wins &= _bytes([1] * group)


def _bytes(values: list[int] | range) -> int:
    """An integer whose byte b, counted from the lowest, is values[b]."""
    return sum(value << (8 * position) for position, value in enumerate(values))


def _select_by_sorting(score: Tensor, keep: int, group: int) -> Tensor:
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(1, order[:, :keep], True).view(score.shape)
