"""Unpacking in plain torch: what every kernel must agree with, and the CPU's backend."""

import torch
from torch import Tensor

from secateur_kernels.layouts.fragment24 import plain_order
from secateur_kernels.layouts.pattern import pairs_of, scatter_pairs


def run(data: Tensor, rows: int, columns: int, row_order: str, value_dtype: torch.dtype) -> Tensor:
    """The weight [rows, columns] of packed bytes: kept values bit for bit, +0.0 elsewhere."""
    values, nibbles = plain_order(data, (rows, columns), value_dtype, row_order)
    # As integers: torch's scatter changes the bits of NaN.
    bits = values.contiguous().view(torch.int16).view(rows, columns // 4, 2)
    return scatter_pairs(bits, pairs_of(nibbles)).view(value_dtype)
