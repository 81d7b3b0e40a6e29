"""The 2:4 linear in plain torch: what every backend must agree with, and the CPU's backend."""

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.layouts.fragment24 import plain_order
from secateur_kernels.layouts.pattern import pairs_of, scatter_pairs
from secateur_kernels.precision import wide_dtype


def dense_weight(
    data: Tensor, rows: int, columns: int, row_order: str, value_dtype: torch.dtype
) -> Tensor:
    """The weight [rows, columns] of packed bytes that were validated before."""
    values, nibbles = plain_order(data, (rows, columns), value_dtype, row_order)
    # As integers: torch's scatter on a CPU rewrites the bits of NaN.
    bits = values.contiguous().view(torch.int16).view(rows, columns // 4, 2)
    return scatter_pairs(bits, pairs_of(nibbles)).view(value_dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """The contract of all linear ops, for a dense weight.

    Products and everything after them are in fp32 (fp64 for fp64 inputs), rounded once.

    Args:
        x: [M, K].
        weight: [N, K].
        bias: [N] or None.
        residual: [M, output columns] or None.
        activation: `none` or `silu_and_mul`.
    """
    wide = wide_dtype(x.dtype)
    product = x.to(wide) @ weight.to(wide).T
    return apply_epilogue(product, bias, residual, activation).to(x.dtype)


def linear_of_dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """As `linear` by torch's own matrix product: it rounds once before the epilogue as well."""
    if activation == "none" and residual is None:
        return F.linear(x, weight, bias)
    return apply_epilogue(F.linear(x, weight), bias, residual, activation)
