"""Round weights to a narrower dtype without touching the pattern of zeros."""

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["nearest", "stochastic"]


def narrow(
    value: Tensor,
    dtype: torch.dtype,
    keep_mask: Tensor | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
) -> Tensor:
    """Round to a narrower dtype, and leave the pattern as it is.

    Args:
        value: fp32, any shape.
        dtype: of the result: bfloat16 or float16.
        keep_mask: bool, same shape; a kept weight that is not zero never becomes zero, but the
            smallest number of its sign that the dtype has in full precision, and all others are
            zero.
        rounding: `nearest` even; or `stochastic`, up or down with probabilities that keep the
            mean, so that changes smaller than the spacing survive on average.
        seed: of stochastic rounding.
    """
    result = value.to(dtype)
    if rounding == "stochastic":
        result = _stochastic(value, result, seed)
    if keep_mask is None:
        return result
    keep = keep_mask.to(value.device)
    lost = keep & (result == 0) & (value != 0)
    smallest = torch.full_like(value, torch.finfo(dtype).tiny).copysign(value).to(dtype)
    return torch.where(lost, smallest, result).masked_fill(~keep, 0.0)


def _stochastic(value: Tensor, nearest: Tensor, seed: int) -> Tensor:
    error = value - nearest.float()
    beyond = torch.where(error > 0, torch.inf, -torch.inf).to(nearest.dtype)
    other = torch.nextafter(nearest, beyond)
    spacing = (other.float() - nearest.float()).abs()
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(value.shape, generator=generator).to(value.device)
    takes_other = (error != 0) & other.isfinite() & (draw * spacing < error.abs())
    return torch.where(takes_other, other, nearest)
