"""What every compiled 2:4 kernel is called with besides how its work is divided."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.dependent_launch import wants_dependent_launch
from secateur_kernels.epilogue import output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.library import require_library
from secateur_kernels.linear_arguments import contiguous
from secateur_kernels.sparse24_linear.cuda_needs import Needs
from secateur_kernels.sparse24_linear.tickets import Counters, take_counters


def check_call(x: Tensor, most_tokens: int) -> None:
    """Raise SecateurError unless the library runs on x's device and the kernel takes its tokens."""
    require_library(x.device)
    if not 1 <= len(x) <= most_tokens:
        raise SecateurError(
            f"expected 1 to {most_tokens} tokens for the compiled kernel, got {len(x)}"
        )


def call_kernel(
    op: Callable[..., Any],
    x: Tensor,
    data: Tensor,
    rows: int,
    gate_up: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    needed: Needs,
    tiling: tuple[int, ...],
) -> Tensor:
    """y [M, output columns] by an op of the library.

    Args:
        op: of `torch.ops.secateur_cuda`.
        x: [M, K] as the kernel reads it, M at least 1.
        data: as `Fragment24.data`.
        rows: N.
        gate_up: whether the row order is gate_up rather than natural.
        bias: [N] or None.
        residual: [M, output columns] or None; copied unless its rows are contiguous.
        activation: `none`, or `silu_and_mul`.
        needed: workspace and counters.
        tiling: how the work is divided, in the op's order.
    """
    y = torch.empty(len(x), output_columns(rows, activation), dtype=x.dtype, device=x.device)
    workspace, counters = None, Counters(0, 0)
    if needed.counters:
        workspace = torch.empty(needed.workspace_floats, dtype=torch.float32, device=x.device)
        counters = take_counters(x.device, needed.counters)
    op(
        x,
        data,
        contiguous(bias),
        None if residual is None else with_contiguous_rows(residual),
        y,
        workspace,
        counters.address,
        counters.count,
        gate_up,
        activation == "silu_and_mul",
        wants_dependent_launch(x.device),
        *tiling,
    )
    return y


def with_contiguous_rows(matrix: Tensor) -> Tensor:
    """The matrix, copied unless its last dimension is contiguous."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
