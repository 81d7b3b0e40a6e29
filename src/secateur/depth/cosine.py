"""Cosines of hidden states, safe at any magnitude."""

import torch
from torch import Tensor


def row_cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of every pair of rows, between -1 and 1.

    Args:
        left: floating [..., width].
        right: the same shape.

    Returns:
        [...] in fp32, or fp64 for fp64 input. Where one of the two rows is zero the cosine is 0;
        where both are, 1.
    """
    left, left_is_zero = _unit_peak(left)
    right, right_is_zero = _unit_peak(right)
    products = (left * right).sum(-1)
    cosine = products / (left.norm(dim=-1) * right.norm(dim=-1))
    cosine = cosine.clamp(-1.0, 1.0)
    both = left_is_zero & right_is_zero
    return torch.where(left_is_zero | right_is_zero, both.to(cosine.dtype), cosine)


def _unit_peak(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to a largest magnitude of 1, so that no norm overflows; which rows are zero."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    peak = hidden.abs().amax(-1, keepdim=True)
    return hidden / peak.clamp_min(torch.finfo(peak.dtype).tiny), (peak == 0).squeeze(-1)
