"""y = epilogue(x @ weight.T) by warpgroups' sparse products, on compute capability 9.0."""

import torch
from torch import Tensor

from secateur_kernels.linear_arguments import with_aligned_rows
from secateur_kernels.sparse24_linear.cuda_call import call_kernel, check_call
from secateur_kernels.sparse24_linear.cuda_wide_choice import (
    candidate_configs,
    default_config,
    variants,
)
from secateur_kernels.sparse24_linear.cuda_wide_config import (
    MAX_SIZE,
    WideConfig,
    needs,
    supports,
)

__all__ = [
    "WideConfig",
    "candidate_configs",
    "default_config",
    "launch",
    "needs",
    "supports",
    "variants",
]


def launch(
    x: Tensor,
    data: Tensor,
    rows: int,
    columns: int,
    gate_up: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: WideConfig,
    dependent: bool | None = None,
) -> Tensor:
    """Weight and x are read once a group of tiles; sums and epilogue in fp32, one rounding.

    The result is the same, bit for bit, at each call with the same config. A weight that was
    dropped is not multiplied: NaN in x at a dropped column of a row does not reach it.

    Args:
        x: [M, K] bf16 or fp16 on a GPU, M at least 1; copied unless its rows are contiguous, at
            multiples of 16 bytes, and each in a place of its own.
        data: uint8 [padded N / 64, padded K / 64, 4608], as `Fragment24.data`.
        rows: N.
        columns: K.
        gate_up: whether the row order is gate_up rather than natural.
        bias: [N] or None.
        residual: [M, output columns] or None.
        activation: `none`, or `silu_and_mul` (needs gate_up).
        config: how the work is divided.
        dependent: whether weights may be read before the kernel in front has ended; None leaves
            that to `dependent_launch`.

    Returns:
        [M, N], or [M, N / 2] for `silu_and_mul`.

    Raises:
        SecateurError: the library cannot run on the device, or M is out of range.
    """
    check_call(x, MAX_SIZE)
    needed = needs(config, len(x), rows, columns)
    return call_kernel(
        torch.ops.secateur_cuda.sparse24_wide,
        with_aligned_rows(x),
        data,
        rows,
        gate_up,
        bias,
        residual,
        activation,
        (needed.workspace_floats, needed.counters),
        (
            config.warpgroups,
            config.panels,
            config.tokens,
            config.stages,
            config.cluster_rows,
            config.cluster_tokens,
            config.cluster_steps,
            config.blocks,
            config.waves,
            config.group,
            config.late,
            config.ahead,
        ),
        dependent,
    )
