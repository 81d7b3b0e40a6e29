"""Unstructured sparsity: the lowest scores of each comparison group go, exactly as asked."""

from math import floor
from typing import Literal

import torch
from torch import Tensor

from secateur_kernels.backends import HAS_TRITON
from secateur_kernels.errors import SecateurError
from secateur_kernels.threshold.op import keep_largest_per_row

# A program of the kernel has one row: longer ones, such as a whole matrix, would run on one core.
_MAX_KERNEL_COLUMNS = 65536

Compared = Literal["row", "matrix", "block"]


def select_unstructured(
    score: Tensor, fraction: float, compared: Compared, block_size: int = 128
) -> Tensor:
    """Remove the lowest `fraction` of each comparison group.

    Args:
        score: [N, K] floating, finite. Higher = keep.
        fraction: in [0, 1); floor(fraction * group size) weights of every group go.
        compared: weights compete within a `row` (Wanda), the whole `matrix` (magnitude), or a
            `block` of all rows and `block_size` columns (SparseGPT); the last may be narrower.
        block_size: columns of a block.

    Returns:
        bool [N, K], True = keep. Ties keep the lower column, then the lower row.

    Raises:
        SecateurError: `fraction` is out of range, or `compared` unknown.
    """
    if not 0.0 <= fraction < 1.0:
        raise SecateurError(f"expected 0 <= fraction < 1, got {fraction}")
    if compared == "row":
        return _keep_rows(score, fraction)
    if compared == "matrix":
        return _keep_jointly(score, fraction)
    if compared == "block":
        parts = torch.split(score, block_size, dim=1)
        return torch.cat([_keep_jointly(part, fraction) for part in parts], dim=1)
    raise SecateurError(f"expected comparison group row, matrix or block, got {compared!r}")


def _keep_jointly(score: Tensor, fraction: float) -> Tensor:
    # Column after column, so that the stable order of ties is by column first, then row.
    rows, columns = score.shape
    return _keep_rows(score.T.reshape(1, -1), fraction).view(columns, rows).T.contiguous()


def _keep_rows(score: Tensor, fraction: float) -> Tensor:
    columns = score.shape[1]
    # The small addition keeps 0.7 * 10, which is 7 but for rounding, from becoming 6.
    removed = min(floor(fraction * columns * (1 + 1e-15)), columns - 1) if columns else 0
    if removed == 0:
        return torch.ones(score.shape, dtype=torch.bool, device=score.device)
    on_gpu = score.device.type == "cuda" and score.dtype == torch.float32
    if HAS_TRITON and on_gpu and columns <= _MAX_KERNEL_COLUMNS:
        return keep_largest_per_row(score, columns - removed)
    threshold = score.kthvalue(removed, dim=1, keepdim=True).values
    above = score > threshold
    tied = score == threshold
    ties_to_keep = (columns - removed) - above.sum(dim=1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=1) <= ties_to_keep))
