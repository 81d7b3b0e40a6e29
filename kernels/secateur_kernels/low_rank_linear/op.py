"""`secateur::low_rank_linear`: the public function, schema, checks, fake and gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.autocast import register_autocast
from secateur_kernels.backends import Backend, check_backend
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.decide import decide
from secateur_kernels.dispatch.problem import Problem, device_facts
from secateur_kernels.epilogue import epilogue_backward, output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.low_rank import LowRank, check_factors
from secateur_kernels.layouts.require import require_layout
from secateur_kernels.linear_arguments import as_matrix, check_device, check_linear, rows_of
from secateur_kernels.low_rank_linear.gradient import into_factors_and_input
from secateur_kernels.low_rank_linear.launch import choice_of, launch
from secateur_kernels.namespace import LIBRARY

BACKENDS = ("auto", "reference", "triton", "cuda", "two_gemms")
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

LIBRARY.define(
    "low_rank_linear(Tensor x, Tensor down, Tensor up, int[] group_rows, Tensor? bias, "
    "Tensor? residual, str activation, str backend) -> Tensor"
)


def low_rank_linear(
    x: Tensor,
    weight: LowRank,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    backend: Backend = "auto",
) -> Tensor:
    """y = epilogue((x @ down.T) @ up.T), by groups of rows.

    The epilogue is that of `sparse24_linear`. The backends `reference`, `triton` and `cuda` keep
    the intermediate in fp32 and round once; `two_gemms` rounds after each product. The gradient
    reaches x, both factors, bias and residual.

    Args:
        x: [..., K], bf16, fp16, fp32 or fp64 as the factors (`triton` and `cuda`: bf16 and fp16;
            `cuda`: 1 to 64 tokens, fewer where their t does not fit into shared memory).
        weight: factors of [N, K]; rows [gate; up] for `silu_and_mul`.
        bias: [N], dtype of x.
        residual: [..., output columns], dtype of x.
        activation: `none` or `silu_and_mul`.
        backend: `auto` asks dispatch; another name is used or refused, never replaced.

    Returns:
        [..., N], or [..., N / 2] for `silu_and_mul`; contiguous, dtype of x.

    Raises:
        SecateurError: an argument does not fit; the backend is not there.
    """
    require_layout(weight, LowRank)
    return torch.ops.secateur.low_rank_linear(  # type: ignore[no-any-return]
        x, weight.down, weight.up, weight.group_rows, bias, residual, activation, backend
    )


def explain(x: Tensor, weight: LowRank) -> Choice:
    """What `auto` would use for these arguments, and why."""
    require_layout(weight, LowRank)
    return decide(problem_of(as_matrix(x), weight.down, weight.up))


def problem_of(x: Tensor, down: Tensor, up: Tensor) -> Problem:
    """The facts of a call with x [M, K]."""
    return Problem(
        "low_rank_linear",
        len(x),
        up.shape[0],
        down.shape[1],
        x.dtype,
        device_facts(x.device),
        rank=up.shape[1],
        groups=down.shape[0] // up.shape[1],
    )


def check_low_rank(
    x: Tensor, down: Tensor, up: Tensor, group_rows: Sequence[int], activation: str
) -> None:
    """Raise SecateurError unless factors, x and activation fit each other."""
    check_factors(down, up, group_rows)
    if x.dtype != up.dtype:
        raise SecateurError(f"expected x of the factors' dtype {up.dtype}, got {x.dtype}")
    check_device(x, factors=up)
    if activation == "silu_and_mul" and len(group_rows) not in (1, 2):
        raise SecateurError(
            f"expected one or two groups (gate, up) for silu_and_mul, got {len(group_rows)}"
        )
    if activation == "silu_and_mul" and len(set(group_rows)) > 1:
        raise SecateurError(
            f"expected as many up rows as gate rows for silu_and_mul, got {list(group_rows)}"
        )


def _run(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    backend: str,
) -> Tensor:
    check_backend(backend, BACKENDS)
    check_low_rank(x, down, up, group_rows, activation)
    rows, columns = up.shape[0], down.shape[1]
    out = check_linear(x, rows, columns, FLOATS, bias, residual, activation)
    matrix = as_matrix(x)
    flat = None if residual is None else as_matrix(residual)
    shape = (*x.shape[:-1], out)
    if len(matrix) == 0 or out == 0:
        return x.new_empty(shape)
    rest = (None, down, up, group_rows, bias, flat, activation)
    if columns == 0:
        return launch(Choice("reference"), matrix, *rest).view(shape)
    choice = choice_of(problem_of(matrix, down, up), matrix, backend)
    return launch(choice, matrix, *rest).view(shape)


def _fake(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    backend: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], output_columns(up.shape[0], activation)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, down, up, group_rows, bias, _, activation, _ = inputs
    ctx.save_for_backward(x, down, up, bias)
    ctx.group_rows = group_rows
    ctx.activation = activation


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, down, up, bias = ctx.saved_tensors
    result = gradient
    if ctx.activation != "none":
        result = torch.ops.secateur.low_rank_linear(
            x, down, up, ctx.group_rows, bias, None, "none", "auto"
        )
    flat = rows_of(epilogue_backward(gradient, result, ctx.activation))
    needs_x, needs_down, needs_up, _, needs_bias, needs_residual, _, _ = ctx.needs_input_grad
    into_x, into_down, into_up = into_factors_and_input(
        flat, rows_of(x), down, up, ctx.group_rows, (needs_x, needs_down, needs_up)
    )
    into_bias = flat.sum(0) if needs_bias else None
    shaped = None if into_x is None else into_x.view(x.shape)
    into_residual = gradient if needs_residual else None
    return shaped, into_down, into_up, None, into_bias, into_residual, None, None


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("low_rank_linear", _run, _device)
torch.library.register_fake("secateur::low_rank_linear", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "secateur::low_rank_linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
register_autocast("low_rank_linear")
