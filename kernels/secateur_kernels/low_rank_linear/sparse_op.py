"""`secateur::sparse24_low_rank_linear`: a 2:4 part and a low-rank part in one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.autocast import register_autocast
from secateur_kernels.backends import Backend, check_backend
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import Problem, device_facts
from secateur_kernels.epilogue import epilogue_backward, output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.fragment24 import Fragment24
from secateur_kernels.layouts.low_rank import LowRank
from secateur_kernels.layouts.require import require_layout
from secateur_kernels.linear_arguments import as_matrix, check_linear, rows_of
from secateur_kernels.low_rank_linear.cuda_kernel import takes_groups
from secateur_kernels.low_rank_linear.gradient import into_factors_and_input
from secateur_kernels.low_rank_linear.launch import choice_of, choose_for, launch
from secateur_kernels.low_rank_linear.op import FLOATS, check_low_rank
from secateur_kernels.namespace import LIBRARY
from secateur_kernels.sparse24_linear.packed import SCHEMA, Packed24, check_packed

BACKENDS = ("auto", "reference", "triton", "cuda", "unpack")

LIBRARY.define(
    f"sparse24_low_rank_linear(Tensor x, {SCHEMA}, Tensor down, Tensor up, int[] group_rows, "
    "Tensor? bias, Tensor? residual, str activation, str backend) -> Tensor"
)


def sparse24_low_rank_linear(
    x: Tensor,
    weight: Fragment24,
    factors: LowRank,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    backend: Backend = "auto",
) -> Tensor:
    """y = epilogue(x @ weight.T + (x @ down.T) @ up.T).

    Both parts are added in fp32 before the epilogue of `sparse24_linear`, except by the backend
    `unpack`, which adds torch's rounded products. The gradient reaches x, both factors, bias and
    residual, not the packed weight.

    Args:
        x: [..., K], as for `sparse24_linear`.
        weight: packed [N, K]; row order `gate_up` for `silu_and_mul`.
        factors: of [N, K] in logical row order ([gate; up]), dtype of x.
        bias: [N], dtype of x.
        residual: [..., output columns], dtype of x.
        activation: `none` or `silu_and_mul`.
        backend: `auto` asks dispatch; another name is used or refused, never replaced.

    Returns:
        [..., N], or [..., N / 2] for `silu_and_mul`; contiguous, dtype of x.

    Raises:
        SecateurError: an argument does not fit; the backend is not there.
    """
    packed = Packed24.of(weight)
    require_layout(factors, LowRank)
    rest = (factors.down, factors.up, factors.group_rows, bias, residual, activation, backend)
    return torch.ops.secateur.sparse24_low_rank_linear(x, *packed, *rest)  # type: ignore[no-any-return]


def explain(x: Tensor, weight: Fragment24, factors: LowRank) -> Choice:
    """What `auto` would use for these arguments, and why."""
    require_layout(weight, Fragment24)
    require_layout(factors, LowRank)
    problem = _problem(as_matrix(x), *weight.shape, factors.rank, len(factors.group_rows))
    return choose_for(problem, takes_groups(factors.group_rows, weight.row_order))


def _problem(x: Tensor, rows: int, columns: int, rank: int, groups: int) -> Problem:
    facts = device_facts(x.device)
    return Problem(
        "sparse24_low_rank_linear", len(x), rows, columns, x.dtype, facts, rank=rank, groups=groups
    )


def _run(
    x: Tensor,
    data: Tensor,
    rows: int,
    columns: int,
    row_order: str,
    value_dtype: torch.dtype,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    backend: str,
) -> Tensor:
    check_backend(backend, BACKENDS)
    weight = Packed24(data, rows, columns, row_order, value_dtype)
    check_low_rank(x, down, up, group_rows, activation)
    if (up.shape[0], down.shape[1]) != (rows, columns):
        raise SecateurError(
            f"expected factors of a weight {[rows, columns]} as the packed one, "
            f"got {[up.shape[0], down.shape[1]]}"
        )
    out = check_linear(x, rows, columns, FLOATS, bias, residual, activation)
    check_packed(weight, x, activation, backend)
    matrix = as_matrix(x)
    flat = None if residual is None else as_matrix(residual)
    shape = (*x.shape[:-1], out)
    if len(matrix) == 0 or out == 0:
        return x.new_empty(shape)
    rest = (weight, down, up, group_rows, bias, flat, activation)
    if columns == 0:
        return launch(Choice("reference"), matrix, *rest).view(shape)
    problem = _problem(matrix, rows, columns, up.shape[1], len(group_rows))
    fits = takes_groups(group_rows, row_order)
    choice = choice_of(problem, matrix, backend, fits)
    return launch(choice, matrix, *rest).view(shape)


def _fake(x: Tensor, data: Tensor, rows: int, *rest: Any) -> Tensor:
    activation = rest[-2]
    return x.new_empty((*x.shape[:-1], output_columns(rows, activation)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, data, *shape, down, up, group_rows, bias, _, activation, _ = inputs
    ctx.save_for_backward(x, data, down, up, bias)
    ctx.shape = shape
    ctx.group_rows = group_rows
    ctx.activation = activation


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, data, down, up, bias = ctx.saved_tensors
    weight = (data, *ctx.shape)
    result = gradient
    if ctx.activation != "none":
        result = torch.ops.secateur.sparse24_low_rank_linear(
            x, *weight, down, up, ctx.group_rows, bias, None, "none", "auto"
        )
    flat = rows_of(epilogue_backward(gradient, result, ctx.activation))
    needs = ctx.needs_input_grad
    into_x, into_down, into_up = into_factors_and_input(
        flat, rows_of(x), down, up, ctx.group_rows, (needs[0], needs[6], needs[7])
    )
    if into_x is not None:
        into_x = into_x + torch.ops.secateur.sparse24_linear_input_gradient(flat, *weight)
        into_x = into_x.view(x.shape)
    into_bias = flat.sum(0) if needs[9] else None
    into_residual = gradient if needs[10] else None
    return (into_x, *[None] * 5, into_down, into_up, None, into_bias, into_residual, None, None)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("sparse24_low_rank_linear", _run, _device)
torch.library.register_fake("secateur::sparse24_low_rank_linear", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "secateur::sparse24_low_rank_linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
register_autocast("sparse24_low_rank_linear")
