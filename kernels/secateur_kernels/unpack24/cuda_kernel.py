"""Fragment order to dense by the compiled library."""

import torch
from torch import Tensor

from secateur_kernels.library import require_library


def launch(
    data: Tensor, rows: int, columns: int, gate_up: bool, value_dtype: torch.dtype
) -> Tensor:
    """The dense weight [rows, columns], bit for bit, +0.0 where nothing is kept.

    Args:
        data: uint8 [padded rows / 64, padded columns / 64, 4608] on a GPU, as `Fragment24.data`.
        rows: N, any.
        columns: K, divisible by 4.
        gate_up: whether the row order is gate_up (N divisible by 16) rather than natural.
        value_dtype: of 16 bits.

    Raises:
        SecateurError: the library cannot run on the device.
    """
    require_library(data.device)
    dense = torch.empty(rows, columns, dtype=value_dtype, device=data.device)
    if dense.numel():
        torch.ops.secateur_cuda.unpack24(data, dense, gate_up)
    return dense
