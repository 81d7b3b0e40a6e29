"""`secateur::canonical24_linear`: the 2:4 linear whose weight can be trained."""

from typing import Any

import torch
from torch import Tensor

from secateur_kernels.autocast import register_autocast
from secateur_kernels.epilogue import epilogue_backward, output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.pattern import pairs_of, scatter_pairs
from secateur_kernels.linear_arguments import as_matrix, check_device, check_linear, rows_of
from secateur_kernels.namespace import LIBRARY
from secateur_kernels.sparse24_linear.reference import linear, linear_of_dense

LIBRARY.define(
    "canonical24_linear(Tensor x, Tensor values, Tensor indices, Tensor? bias, Tensor? residual, "
    "str activation) -> Tensor"
)


def canonical24_linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """y = epilogue(x @ weight.T) with a gradient to the kept weights; as `sparse24_linear` else.

    The weight is expanded at each call and multiplied by torch: this is for training and for
    checks, the packed form for serving. On a CPU sums are in fp32 and rounded once; on a GPU
    torch's product is rounded before activation and residual.

    Args:
        x: [..., K], any floating dtype.
        values: [N, K / 2], dtype of x: the kept weights, as `Canonical24.values`.
        indices: uint8 [N, ceil(K / 8)], as `Canonical24.indices`; not checked here.
        bias: [N], dtype of x.
        residual: [..., output columns], dtype of x.
        activation: `none`, or `silu_and_mul` for rows [gate; up].

    Returns:
        [..., N], or [..., N / 2] for `silu_and_mul`.

    Raises:
        SecateurError: an argument does not fit.
    """
    return torch.ops.secateur.canonical24_linear(  # type: ignore[no-any-return]
        x, values, indices, bias, residual, activation
    )


def _pairs(values: Tensor, indices: Tensor) -> Tensor:
    """Kept columns within each group, int64 [N, K / 4, 2]."""
    nibbles = torch.stack([indices & 15, indices >> 4], dim=2).flatten(1)
    return pairs_of(nibbles[:, : values.shape[1] // 2])


def _dense(values: Tensor, indices: Tensor) -> Tensor:
    pairs = _pairs(values, indices)
    return scatter_pairs(values.reshape(len(values), -1, 2), pairs)


def _run(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    _check_values(x, values, indices)
    rows, columns = values.shape[0], 2 * values.shape[1]
    floats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    out = check_linear(x, rows, columns, floats, bias, residual, activation)
    flat = None if residual is None else as_matrix(residual)
    multiply = linear if x.device.type == "cpu" else linear_of_dense
    y = multiply(as_matrix(x), _dense(values, indices), bias, flat, activation)
    return y.view(*x.shape[:-1], out)


def _check_values(x: Tensor, values: Tensor, indices: Tensor) -> None:
    if values.ndim != 2 or values.shape[1] % 2 or values.dtype != x.dtype:
        raise SecateurError(
            f"expected values {x.dtype} [N, K / 2] with K divisible by 4, "
            f"got {values.dtype} {list(values.shape)}"
        )
    expected = [values.shape[0], -(-values.shape[1] // 4)]
    if indices.dtype != torch.uint8 or list(indices.shape) != expected:
        raise SecateurError(
            f"expected indices uint8 {expected}, got {indices.dtype} {list(indices.shape)}"
        )
    check_device(x, values=values, indices=indices)


def _fake(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], output_columns(values.shape[0], activation)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, indices, bias, _, activation = inputs
    ctx.save_for_backward(x, values, indices, bias)
    ctx.activation = activation


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, values, indices, bias = ctx.saved_tensors
    product = gradient
    if ctx.activation != "none":
        product = torch.ops.secateur.canonical24_linear(x, values, indices, bias, None, "none")
    into_product = epilogue_backward(gradient, product, ctx.activation)
    needs_x, needs_values, _, needs_bias, needs_residual, _ = ctx.needs_input_grad
    into_x = into_product @ _dense(values, indices) if needs_x else None
    flat = rows_of(into_product)
    into_values = _into_values(flat, rows_of(x), values, indices) if needs_values else None
    into_bias = flat.sum(0) if needs_bias else None
    return into_x, into_values, None, into_bias, gradient if needs_residual else None, None


def _into_values(gradient: Tensor, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """The dense weight's gradient at the kept columns, [N, K / 2]."""
    dense = (gradient.T @ x).reshape(len(values), -1, 4)
    return dense.gather(2, _pairs(values, indices)).reshape(values.shape)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("canonical24_linear", _run, _device)
torch.library.register_fake("secateur::canonical24_linear", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "secateur::canonical24_linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
register_autocast("canonical24_linear")
