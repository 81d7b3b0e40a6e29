"""The low-rank linear in plain torch: what every backend must agree with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.precision import wide_dtype


def product(
    x: Tensor, down: Tensor, up: Tensor, group_rows: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """(x @ down.T) @ up.T by groups, computed in `dtype`: [M, N].

    Args:
        x: [M, K].
        down: [G * r, K].
        up: [N, r].
        group_rows: rows of each group.
        dtype: of both products and of the intermediate.
    """
    hidden = F.linear(x.to(dtype), down.to(dtype))
    if len(group_rows) == 1:
        return F.linear(hidden, up.to(dtype))
    parts = zip(hidden.split(up.shape[1], dim=1), up.split(list(group_rows)), strict=True)
    return torch.cat([F.linear(part, rows.to(dtype)) for part, rows in parts], dim=1)


def low_rank(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """The contract: everything in fp32 (fp64 for fp64), the intermediate included, rounded once."""
    wide = wide_dtype(x.dtype)
    result = product(x, down, up, group_rows, wide)
    return apply_epilogue(result, bias, residual, activation).to(x.dtype)


def two_gemms(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """As `low_rank` by torch's matrix products in the dtype of x: rounds after each of them."""
    if len(group_rows) == 1 and activation == "none" and residual is None:
        return F.linear(F.linear(x, down), up, bias)
    result = product(x, down, up, group_rows, x.dtype)
    return apply_epilogue(result, bias, residual, activation)
