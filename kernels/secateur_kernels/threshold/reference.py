"""The largest scores of every row in plain torch: what the kernel must agree with."""

import torch
from torch import Tensor

# Below the key of minus infinity, which is -2139095041.
NAN_KEY = -(2**31) + 1


def ordered_keys(score: Tensor) -> Tensor:
    """int32 in the order of fp32 scores: both zeros are one key, NaN is below minus infinity.

    The bits of an fp32 are sign and magnitude; flipping the magnitude of negative ones makes them
    two's complement, but for zero.
    """
    bits = torch.where(score == 0, 0.0, score).view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return torch.where(score.isnan(), NAN_KEY, keys)


def run(score: Tensor, keep: int) -> Tensor:
    """bool [N, K] from checked fp32 scores [N, K], on any device."""
    columns = score.shape[1]
    if keep == 0 or keep == columns:
        return torch.full(score.shape, keep > 0, dtype=torch.bool, device=score.device)
    keys = ordered_keys(score)
    threshold = keys.kthvalue(columns - keep + 1, dim=1, keepdim=True).values
    above = keys > threshold
    tied = keys == threshold
    ties_to_keep = keep - above.sum(dim=1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=1) <= ties_to_keep))
