"""Round weights to a narrower dtype without touching the pattern of zeros."""

import torch
from torch import Tensor


def narrow(value: Tensor, dtype: torch.dtype, keep_mask: Tensor | None = None) -> Tensor:
    """Round to the nearest of a narrower dtype, and leave the pattern as it is.

    Args:
        value: fp32, any shape.
        dtype: of the result: bfloat16 or float16.
        keep_mask: bool, same shape; a kept weight that is not zero never becomes zero, but the
            smallest number of its sign that the dtype has in full precision, and all others are
            zero.
    """
    result = value.to(dtype)
    if keep_mask is None:
        return result
    keep = keep_mask.to(value.device)
    lost = keep & (result == 0) & (value != 0)
    smallest = torch.full_like(value, torch.finfo(dtype).tiny).copysign(value).to(dtype)
    return torch.where(lost, smallest, result).masked_fill(~keep, 0.0)
