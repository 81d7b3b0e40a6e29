"""y = epilogue(x @ weight.T) for few tokens by the compiled library."""

import torch
from torch import Tensor

from secateur_kernels.sparse24_linear.cuda_call import call_kernel, check_call
from secateur_kernels.sparse24_linear.cuda_skinny_choice import (
    candidate_configs,
    default_config,
    variants,
)
from secateur_kernels.sparse24_linear.cuda_skinny_config import (
    MAX_TOKENS,
    SkinnyConfig,
    needs,
    supports,
)

__all__ = ["SkinnyConfig", "candidate_configs", "default_config", "launch", "supports", "variants"]


def launch(
    x: Tensor,
    data: Tensor,
    rows: int,
    columns: int,
    gate_up: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: SkinnyConfig,
) -> Tensor:
    """One pass over the weight; sums and epilogue in fp32, one rounding at the end.

    The result is the same, bit for bit, at each call with the same config. In a captured graph the
    weight is read before the kernel in front has ended: see `dependent_launch`. A weight that was
    dropped is not multiplied: NaN in x at a dropped column of a row does not reach it.

    Args:
        x: [M, K] bf16 or fp16 on a GPU, M from 1 to 64, the last dimension contiguous, any row
            stride; rows that start at multiples of 16 bytes are read faster.
        data: uint8 [padded N / 64, padded K / 64, 4608], as `Fragment24.data`.
        rows: N.
        columns: K.
        gate_up: whether the row order is gate_up rather than natural.
        bias: [N] or None.
        residual: [M, output columns] or None.
        activation: `none`, or `silu_and_mul` (needs gate_up).
        config: how the work is divided.

    Returns:
        [M, N], or [M, N / 2] for `silu_and_mul`.

    Raises:
        SecateurError: the library cannot run on the device, or M is out of range.
    """
    check_call(x, MAX_TOKENS)
    needed = needs(config, len(x), rows, columns)
    return call_kernel(
        torch.ops.secateur_cuda.sparse24_skinny,
        x if x.stride(1) == 1 else x.contiguous(),
        data,
        rows,
        gate_up,
        bias,
        residual,
        activation,
        (needed.workspace_floats, needed.counters),
        (
            config.warps,
            config.row_tiles,
            config.stages,
            config.blocks,
            config.cluster,
            config.lead,
            config.ahead,
        ),
    )
