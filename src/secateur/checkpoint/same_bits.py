"""Whether two tensors are the same, bit for bit."""

import torch
from torch import Tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Dtype, shape and every bit: NaN is itself, and -0.0 is not 0.0. Memory order is free.

    Both are on one device.
    """
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = _bytes(one), _bytes(other)
    if all(len(found) % 8 == found.storage_offset() % 8 == 0 for found in (first, second)):
        # Wide integers are compared faster.
        first, second = first.view(torch.int64), second.view(torch.int64)
    return torch.equal(first, second)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
