"""Score, select and pack in plain torch: what the kernel must agree with, and the CPU's backend."""

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.canonical24 import Canonical24
from secateur_kernels.layouts.fragment24 import Fragment24, RowOrder
from secateur_kernels.layouts.pattern import PADDING_NIBBLE, nibbles_of, two_of_four
from secateur_kernels.pack24.request import Packed, Request


def score_of(weight: Tensor, input_norm: Tensor | None) -> Tensor:
    """|W|, or |W| times the input norm (Wanda, Sun et al., arXiv 2306.11695): fp32 [N, K]."""
    wide = weight.float()
    return wide.abs() if input_norm is None else (wide * input_norm).abs()


def select_two_of_four(score: Tensor) -> Tensor:
    """bool [N, K]: the two highest of every four consecutive scores.

    A score is kept if fewer than two of its group beat it. Ties go to the lower column; NaN ranks
    below every number, minus infinity included.
    """
    rows, columns = score.shape
    columns_of_group = score.reshape(rows, columns // 4, 4).unbind(2)
    beaten_by = [torch.zeros_like(columns_of_group[0], dtype=torch.int8) for _ in range(4)]
    for lower in range(4):
        for higher in range(lower + 1, 4):
            first, second = columns_of_group[lower], columns_of_group[higher]
            ahead = (first >= second) | second.isnan()
            beaten_by[higher] += ahead
            beaten_by[lower] += ~ahead
    return (torch.stack(beaten_by, dim=2) < 2).view(rows, columns)


def run(request: Request) -> Packed:
    """Checked arguments to results, on any device.

    Raises:
        SecateurError: the given mask keeps more than two of four.
    """
    packed = request.allocate()
    weight, kept = request.weight, request.keep_mask
    if kept is None:
        score = request.score
        kept = select_two_of_four(score_of(weight, request.input_norm) if score is None else score)
    mask = kept
    if request.keep_mask is not None or request.want_canonical or request.want_fragment:
        pairs = two_of_four(kept.contiguous())
        filled = kept.new_zeros(*pairs.shape[:2], 4).scatter_(2, pairs, True)
        mask = filled.view(weight.shape)
    if request.want_mask:
        packed = packed._replace(mask=mask)
    if request.want_canonical or request.want_fragment:
        canonical = _canonical(weight, kept, pairs)
        if request.want_canonical:
            packed = packed._replace(values=canonical.values, indices=canonical.indices)
        if request.want_fragment:
            order: RowOrder = "gate_up" if request.gate_up else "natural"
            packed = packed._replace(data=Fragment24.from_canonical(canonical, order).data)
    return packed


def _canonical(weight: Tensor, kept: Tensor, pairs: Tensor) -> Canonical24:
    """As `Canonical24.from_dense`, and exact for NaN as well: torch's gather changes its bits."""
    rows, columns = weight.shape
    bits = weight.contiguous().view(torch.int16).masked_fill(~kept, 0)
    values = bits.view(rows, columns // 4, 4).gather(2, pairs).view(rows, columns // 2)
    nibbles = F.pad(nibbles_of(pairs), (0, columns // 4 % 2), value=PADDING_NIBBLE)
    indices = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return Canonical24(values.view(weight.dtype), indices.contiguous())


def check_keeps_at_most_two(keep_mask: Tensor) -> None:
    """Raise SecateurError where a mask keeps more than two of four; waits for the device.

    Args:
        keep_mask: bool [N, K], K divisible by 4.
    """
    words = keep_mask.contiguous().view(torch.int32)
    # Adds up the four bytes of a group in the highest one.
    crowded = (words * 0x01010101) >> 24 > 2
    if bool(crowded.any()):
        row, group = crowded.nonzero()[0].tolist()
        kept = int(keep_mask[row, 4 * group : 4 * group + 4].sum())
        raise SecateurError(
            f"expected at most 2 of 4 consecutive columns kept, but row {row} keeps "
            f"{kept} of columns {4 * group} to {4 * group + 3}"
        )
