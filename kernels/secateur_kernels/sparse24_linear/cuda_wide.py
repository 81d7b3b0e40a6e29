"""y = epilogue(x @ weight.T) by warpgroups' sparse products, on compute capability 9.0."""

import torch
from torch import Tensor

from secateur_kernels.dependent_launch import wants_dependent_launch
from secateur_kernels.epilogue import output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.library import require_library
from secateur_kernels.linear_arguments import contiguous, with_aligned_rows
from secateur_kernels.sparse24_linear.cuda_wide_choice import candidate_configs, default_config
from secateur_kernels.sparse24_linear.cuda_wide_config import (
    MAX_SIZE,
    WideConfig,
    needs,
    supports,
)
from secateur_kernels.sparse24_linear.tickets import Counters, take_counters

__all__ = ["WideConfig", "candidate_configs", "default_config", "launch", "needs", "supports"]


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
    require_library(x.device)
    tokens = len(x)
    if not 1 <= tokens <= MAX_SIZE:
        raise SecateurError(f"expected 1 to 2**30 tokens for the compiled kernel, got {tokens}")
    y = torch.empty(tokens, output_columns(rows, activation), dtype=x.dtype, device=x.device)
    needed = needs(config, tokens, rows, columns)
    workspace, counters = None, Counters(0, 0)
    if needed.counters:
        workspace = torch.empty(needed.workspace_floats, dtype=torch.float32, device=x.device)
        counters = take_counters(x.device, needed.counters)
    torch.ops.secateur_cuda.sparse24_wide(
        with_aligned_rows(x),
        data,
        contiguous(bias),
        residual if residual is None or residual.stride(1) == 1 else residual.contiguous(),
        y,
        workspace,
        counters.address,
        counters.count,
        gate_up,
        activation == "silu_and_mul",
        wants_dependent_launch(x.device) if dependent is None else dependent,
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
    )
    return y
