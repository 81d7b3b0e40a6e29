"""y = epilogue(x @ weight.T) for few tokens by the compiled library."""

import torch
from torch import Tensor

from secateur_kernels.dependent_launch import wants_dependent_launch
from secateur_kernels.epilogue import output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.library import require_library
from secateur_kernels.sparse24_linear.cuda_skinny_choice import candidate_configs, default_config
from secateur_kernels.sparse24_linear.cuda_skinny_config import (
    MAX_TOKENS,
    SkinnyConfig,
    needs,
    supports,
)
from secateur_kernels.sparse24_linear.tickets import Counters, take_counters

__all__ = ["SkinnyConfig", "candidate_configs", "default_config", "launch", "supports"]


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
    require_library(x.device)
    tokens = len(x)
    if not 1 <= tokens <= MAX_TOKENS:
        raise SecateurError(
            f"expected 1 to {MAX_TOKENS} tokens for the compiled kernel, got {tokens}"
        )
    y = torch.empty(tokens, output_columns(rows, activation), dtype=x.dtype, device=x.device)
    needed = needs(config, tokens, rows, columns)
    workspace, counters = None, Counters(0, 0)
    if needed.counters:
        workspace = torch.empty(needed.workspace_floats, dtype=torch.float32, device=x.device)
        counters = take_counters(x.device, needed.counters)
    torch.ops.secateur_cuda.sparse24_skinny(
        _with_contiguous_rows(x),
        data,
        None if bias is None else bias.contiguous(),
        None if residual is None else _with_contiguous_rows(residual),
        y,
        workspace,
        counters.address,
        counters.count,
        gate_up,
        activation == "silu_and_mul",
        wants_dependent_launch(x.device),
        config.warps,
        config.row_tiles,
        config.stages,
        config.blocks,
        config.cluster,
    )
    return y


def _with_contiguous_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
