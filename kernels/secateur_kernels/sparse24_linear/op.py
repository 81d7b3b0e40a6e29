"""`secateur::sparse24_linear`: the public function, schema, checks, fake and gradient."""

from typing import Any

import torch
from torch import Tensor

from secateur_kernels.autocast import register_autocast
from secateur_kernels.backends import Backend, check_backend
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.decide import decide
from secateur_kernels.epilogue import epilogue_backward, output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.fragment24 import Fragment24
from secateur_kernels.layouts.require import require_layout
from secateur_kernels.linear_arguments import as_matrix, check_device, check_linear, rows_of
from secateur_kernels.namespace import LIBRARY
from secateur_kernels.sparse24_linear.launch import BACKENDS, choice_of, launch, problem_of
from secateur_kernels.sparse24_linear.packed import SCHEMA, Packed24, check_packed
from secateur_kernels.sparse24_linear.reference import linear
from secateur_kernels.unpack24.op import unpack24_data

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

LIBRARY.define(
    f"sparse24_linear(Tensor x, {SCHEMA}, Tensor? bias, Tensor? residual, str activation, "
    "Tensor? dense, str backend) -> Tensor"
)
LIBRARY.define(f"sparse24_linear_input_gradient(Tensor gradient, {SCHEMA}) -> Tensor")


def sparse24_linear(
    x: Tensor,
    weight: Fragment24,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    dense: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """y = epilogue(x @ weight.T), for a packed 2:4 weight.

    z = x @ weight.T + bias; for `silu_and_mul` z = silu(z[:, : N / 2]) * z[:, N / 2 :]; y = z +
    residual. Sums are in fp32 and rounded once, but for the backends `unpack` and `dense`, where
    torch's product is rounded before activation and residual.

    NaN or Inf in x at a dropped column of a row reaches y, as in a dense product with a zero,
    unless the backend is `cuda`, whose instruction never reads it.

    The gradient reaches x (through the kept weights), bias and residual; train the weight itself
    by `canonical24_linear`.

    Args:
        x: [..., K], bf16 or fp16 as the weight; the reference backend takes fp32 and fp64 as well.
        weight: packed [N, K]. Packed with row order `gate_up` for `silu_and_mul`.
        bias: [N], dtype of x, in logical row order.
        residual: [..., output columns], dtype of x.
        activation: `none` or `silu_and_mul`.
        dense: the same weight [N, K], dense, if the caller keeps it: allows the backend `dense`.
        backend: `auto` asks dispatch; another name is used or refused, never replaced.

    Returns:
        [..., N], or [..., N / 2] for `silu_and_mul`; contiguous, dtype of x.

    Raises:
        SecateurError: an argument does not fit; the backend is not there.
    """
    packed = Packed24.of(weight)
    return torch.ops.secateur.sparse24_linear(  # type: ignore[no-any-return]
        x, *packed, bias, residual, activation, dense, backend
    )


def explain(x: Tensor, weight: Fragment24, *, dense: Tensor | None = None) -> Choice:
    """What `auto` would use for these arguments, and why."""
    require_layout(weight, Fragment24)
    return decide(problem_of(as_matrix(x), *weight.shape, dense is not None))


def _run(
    x: Tensor,
    data: Tensor,
    rows: int,
    columns: int,
    row_order: str,
    value_dtype: torch.dtype,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dense: Tensor | None,
    backend: str,
) -> Tensor:
    check_backend(backend, BACKENDS)
    weight = Packed24(data, rows, columns, row_order, value_dtype)
    out = check_linear(x, rows, columns, FLOATS, bias, residual, activation)
    check_packed(weight, x, activation, backend)
    _check_dense(x, dense, rows, columns)
    matrix = as_matrix(x)
    flat = None if residual is None else as_matrix(residual)
    shape = (*x.shape[:-1], out)
    if len(matrix) == 0 or out == 0:
        return x.new_empty(shape)
    if columns == 0:
        return linear(matrix, x.new_empty(rows, 0), bias, flat, activation).view(shape)
    choice = choice_of(matrix, rows, columns, dense, backend)
    return launch(choice, matrix, weight, bias, flat, activation, dense).view(shape)


def _check_dense(x: Tensor, dense: Tensor | None, rows: int, columns: int) -> None:
    if dense is None:
        return
    if list(dense.shape) != [rows, columns] or dense.dtype != x.dtype:
        raise SecateurError(
            f"expected a dense copy {x.dtype} {[rows, columns]}, "
            f"got {dense.dtype} {list(dense.shape)}"
        )
    check_device(x, dense=dense)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    _, rows, _, _, _, _, _, activation, _, _ = arguments
    return x.new_empty((*x.shape[:-1], output_columns(rows, activation)))


def _run_input_gradient(gradient: Tensor, *weight: Any) -> Tensor:
    return gradient @ unpack24_data(*weight).to(gradient.dtype)


def _fake_input_gradient(gradient: Tensor, *weight: Any) -> Tensor:
    _, _, columns, _, _ = weight
    return gradient.new_empty((*gradient.shape[:-1], columns))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, data, rows, columns, row_order, value_dtype, bias, _, activation, _, _ = inputs
    ctx.save_for_backward(x if activation != "none" else None, data, bias)
    ctx.weight = (rows, columns, row_order, value_dtype)
    ctx.activation = activation


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, data, bias = ctx.saved_tensors
    weight = (data, *ctx.weight)
    product = gradient
    if ctx.activation != "none":
        product = torch.ops.secateur.sparse24_linear(x, *weight, bias, None, "none", None, "auto")
    into_product = epilogue_backward(gradient, product, ctx.activation)
    needs_x, needs_bias, needs_residual = (ctx.needs_input_grad[i] for i in (0, 6, 7))
    into_x = None
    if needs_x:
        into_x = torch.ops.secateur.sparse24_linear_input_gradient(into_product, *weight)
    into_bias = rows_of(into_product).sum(0) if needs_bias else None
    return (
        into_x,
        *[None] * 5,
        into_bias,
        gradient if needs_residual else None,
        *[None] * 3,
    )


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("sparse24_linear", _run, _device)
    LIBRARY.impl("sparse24_linear_input_gradient", _run_input_gradient, _device)
torch.library.register_fake("secateur::sparse24_linear", _fake, lib=LIBRARY)
torch.library.register_fake(
    "secateur::sparse24_linear_input_gradient", _fake_input_gradient, lib=LIBRARY
)
torch.library.register_autograd(
    "secateur::sparse24_linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
register_autocast("sparse24_linear")
