"""Gradients and compiled graphs of the ops, on any device."""

from collections.abc import Callable

import torch
from gpu.forced_kernels import reached_by
from gpu.layers import SPARSE, Layer, random_values
from torch import Tensor

from secateur_kernels import LowRank, canonical24_linear, low_rank_linear
from secateur_kernels.sparse24_linear.reference import linear
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within, product, unit_of

# Products, gate and up and their derivatives are each rounded to the dtype once or twice.
_ROUNDINGS = 8


def check_gradient_of_x(layer: Layer, m: int, backend: str, dtype: torch.dtype) -> None:
    """The gradient reaches x through the kept weights: one product, rounded once."""
    assert layer.dense is not None
    device = layer.dense.device
    generator = torch.Generator(device).manual_seed(8)
    n, k = layer.shape
    x = random_values((m, k), dtype, generator).requires_grad_()
    gradient = random_values((m, n), dtype, generator)
    layer(x, backend).backward(gradient)
    assert x.grad is not None
    expected = product(gradient, layer.dense.T)
    assert_within(x.grad, expected, f"{backend}, gradient of x, {m} tokens")


def check_all_gradients(
    call: Callable[[dict[str, Tensor]], Tensor],
    truth: Callable[[dict[str, Tensor]], Tensor],
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Gradients to every input against float64, in the Frobenius norm.

    Each of a few roundings moves what it rounds by at most its unit, elementwise. On random data
    a product passes that on in proportion: of the norm of the whole less than `_ROUNDINGS` units.
    """
    given = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    wide = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
    y, want = call(given), truth(wide)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y)
    y.backward(gradient)
    want.backward(gradient.double())
    for name, tensor in given.items():
        assert tensor.grad is not None, name
        expected = wide[name].grad
        assert expected is not None
        error = float((tensor.grad.double() - expected).norm() / expected.norm())
        assert error < _ROUNDINGS * unit_of(dtype), f"gradient of {name}: relative error {error}"


def check_canonical_gradients(
    values: Tensor, indices: Tensor, dense_of: Callable[[Tensor], Tensor], m: int, activation: str
) -> None:
    """x, values, bias and residual of the trainable 2:4 linear.

    Args:
        values: [N, K / 2].
        indices: of the same weight.
        dense_of: the dense weight [N, K] of given values, differentiable.
        m: tokens.
        activation: of the epilogue.
    """
    n, k = values.shape[0], 2 * values.shape[1]
    inputs = _inputs(m, n, k, activation, values)
    inputs["values"] = values

    def call(given: dict[str, Tensor]) -> Tensor:
        rest = {name: given[name] for name in ("bias", "residual")}
        return canonical24_linear(
            given["x"], given["values"], indices, **rest, activation=activation
        )

    def truth(given: dict[str, Tensor]) -> Tensor:
        rest = (given["bias"], given["residual"], activation)
        return linear(given["x"], dense_of(given["values"]), *rest)

    check_all_gradients(call, truth, inputs, values.dtype)


def check_factor_gradients(factors: LowRank, m: int, activation: str) -> None:
    """x, both factors, bias and residual of the low-rank linear."""
    n, k = factors.shape
    inputs = _inputs(m, n, k, activation, factors.up)
    inputs |= {"down": factors.down, "up": factors.up}

    def call(given: dict[str, Tensor]) -> Tensor:
        weight = LowRank(given["down"], given["up"], factors.group_rows)
        bias, residual = given["bias"], given["residual"]
        return low_rank_linear(
            given["x"], weight, bias=bias, residual=residual, activation=activation
        )

    def truth(given: dict[str, Tensor]) -> Tensor:
        rest = (given["bias"], given["residual"], activation)
        return linear(given["x"], given["up"] @ given["down"], *rest)

    check_all_gradients(call, truth, inputs, factors.up.dtype)


def _inputs(m: int, n: int, k: int, activation: str, like: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator(like.device).manual_seed(10)
    out = n // 2 if activation == "silu_and_mul" else n
    return {
        "x": random_values((m, k), like.dtype, generator),
        "bias": random_values((n,), like.dtype, generator),
        "residual": random_values((m, out), like.dtype, generator),
    }


def check_compiled(
    layer: Layer, xs: list[Tensor], backend: str, options: dict[str, object]
) -> None:
    """One graph without a break; the op is called as it is, so that the bits are those of eager.

    Args:
        layer: what is called.
        xs: each [M, K]; several M compile anew or, with `dynamic`, do not.
        backend: of the layer.
        options: for `torch.compile`.
    """
    with reached_by(backend) as name:

        def call(x: Tensor) -> Tensor:
            return layer(x, name)

        compiled = torch.compile(call, fullgraph=True, **options)  # type: ignore[call-overload]
        for x in xs:
            # Cloned: a captured graph's output is overwritten by the next call.
            y = compiled(x).clone()
            what = f"{layer.op}, {backend}, {len(x)} tokens, compiled {options}"
            assert_same_bits(y, call(x), what)
    torch._dynamo.reset()


def check_op(layer: Layer, x: Tensor, backend: str) -> None:
    """`torch.library.opcheck`: schema, fake, autograd registration, dynamic shapes."""
    arguments: list[object] = [x.detach().requires_grad_()]
    if layer.sparse is not None:
        weight = layer.sparse
        arguments += [weight.data, *weight.shape, weight.row_order, weight.kind.value_dtype]
    if layer.factors is not None:
        arguments += [layer.factors.down, layer.factors.up, layer.factors.group_rows]
    no_dense = [None] if layer.op == SPARSE else []
    op = getattr(torch.ops.secateur, layer.op).default
    with reached_by(backend) as name:
        torch.library.opcheck(op, (*arguments, None, None, "none", *no_dense, name))
