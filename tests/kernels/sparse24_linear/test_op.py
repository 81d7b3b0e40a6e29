"""The 2:4 linear: values, gradients, registration and every error, on the reference backend."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.linears import assert_close, bound, randn, random_mask, truth
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from secateur_kernels import Fragment24, SecateurError, sparse24_linear
from secateur_kernels.layouts import Canonical24
from secateur_kernels.sparse24_linear.op import explain
from secateur_kernels.sparse24_linear.packed import Packed24

DTYPES = (torch.bfloat16, torch.float16)


def packed(
    rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, row_order: Any = "natural"
) -> tuple[Fragment24, Tensor]:
    weight, mask = randn(rows, columns, dtype=dtype, seed=3), random_mask(rows, columns)
    return Fragment24.from_dense(weight, mask, row_order), weight.masked_fill(~mask, 0.0)


@given(
    tokens=st.sampled_from([1, 2, 7, 8, 17, 33]),
    rows=st.sampled_from([1, 16, 24, 64, 80, 130]),
    columns=st.sampled_from([4, 12, 60, 64, 100, 192]),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
    has_residual=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_dense_product(
    tokens: int, rows: int, columns: int, dtype: torch.dtype, has_bias: bool, has_residual: bool
) -> None:
    weight, dense = packed(rows, columns, dtype)
    x = randn(tokens, columns, dtype=dtype)
    bias = randn(rows, dtype=dtype, seed=1) if has_bias else None
    residual = randn(tokens, rows, dtype=dtype, seed=2) if has_residual else None
    y = sparse24_linear(x, weight, bias=bias, residual=residual)
    arguments = (x, dense, bias, residual, "none")
    assert y.dtype == dtype
    assert_close(y, truth(*arguments), bound(*arguments))


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiplies_gate_and_up(dtype: torch.dtype) -> None:
    weight, dense = packed(48, 64, dtype, "gate_up")
    x, bias = randn(2, 5, 64, dtype=dtype), randn(48, dtype=dtype, seed=1)
    residual = randn(2, 5, 24, dtype=dtype, seed=2)
    y = sparse24_linear(x, weight, bias=bias, residual=residual, activation="silu_and_mul")
    arguments = (x, dense, bias, residual, "silu_and_mul")
    assert y.shape == (2, 5, 24)
    assert_close(y, truth(*arguments), bound(*arguments))


def test_gate_up_order_without_activation_gives_rows_in_logical_order() -> None:
    weight, dense = packed(48, 64, row_order="gate_up")
    x = randn(3, 64, dtype=torch.bfloat16)
    arguments = (x, dense, None, None, "none")
    assert_close(sparse24_linear(x, weight), truth(*arguments), bound(*arguments))


def test_one_hot_inputs_give_back_the_weight_bit_for_bit() -> None:
    weight, dense = packed(72, 96)
    y = sparse24_linear(torch.eye(96, dtype=torch.bfloat16), weight)
    assert torch.equal(y.T.contiguous().view(torch.int16), dense.contiguous().view(torch.int16))


@pytest.mark.parametrize("backend", ["reference", "unpack", "dense", "auto"])
def test_backends_of_a_cpu_agree(backend: Any) -> None:
    weight, dense = packed(80, 64)
    x = randn(6, 64, dtype=torch.bfloat16)
    y = sparse24_linear(x, weight, dense=dense, backend=backend)
    arguments = (x, dense, None, None, "none")
    # torch's own product may round partial sums to bfloat16 once more.
    assert_close(y, truth(*arguments), 2 * bound(*arguments))


def test_input_of_any_rank_and_stride() -> None:
    weight, _ = packed(32, 64)
    wide = torch.full((3, 5, 80), float("nan"), dtype=torch.bfloat16)
    wide[..., :64] = randn(3, 5, 64, dtype=torch.bfloat16)
    x = wide[..., :64]
    expected = sparse24_linear(x.contiguous(), weight)
    assert torch.equal(sparse24_linear(x, weight), expected)
    assert torch.equal(sparse24_linear(x[1, 2], weight), expected[1, 2])
    turned = x[0].T.contiguous().T
    assert turned.stride() == (1, 5)
    assert torch.equal(sparse24_linear(turned, weight), expected[0])


@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(0, 64, 64), (3, 0, 64), (3, 64, 0), (0, 0, 0)]
)
def test_empty_problems(tokens: int, rows: int, columns: int) -> None:
    weight, _ = packed(rows, columns)
    bias = randn(rows, dtype=torch.bfloat16)
    y = sparse24_linear(torch.ones(tokens, columns, dtype=torch.bfloat16), weight, bias=bias)
    assert y.shape == (tokens, rows)
    assert torch.equal(y, bias.expand(tokens, rows))


def test_wide_inputs_on_the_reference_backend() -> None:
    weight, dense = packed(32, 64)
    x = randn(4, 64, dtype=torch.float64)
    assert torch.allclose(sparse24_linear(x, weight), x @ dense.double().T, rtol=1e-14)


@pytest.mark.parametrize("tokens", [(3,), ()])
def test_gradients_against_finite_differences(tokens: tuple[int, ...]) -> None:
    weight, _ = packed(32, 24, row_order="gate_up")
    x = randn(*tokens, 24, dtype=torch.float64).requires_grad_()
    bias = randn(32, dtype=torch.float64, seed=1).requires_grad_()
    residual = randn(*tokens, 16, dtype=torch.float64, seed=2).requires_grad_()
    assert gradcheck(
        lambda x, b, r: sparse24_linear(x, weight, bias=b, residual=r, activation="silu_and_mul"),
        (x, bias, residual),
    )
    plain = randn(*tokens, 32, dtype=torch.float64, seed=4).requires_grad_()
    assert gradcheck(
        lambda x, b, r: sparse24_linear(x, weight, bias=b, residual=r), (x, bias, plain)
    )


def test_gradient_of_an_input_with_more_dimensions() -> None:
    weight, dense = packed(32, 64)
    x = randn(2, 3, 64, dtype=torch.bfloat16).requires_grad_()
    sparse24_linear(x, weight).sum().backward()
    assert x.grad is not None
    expected = dense.double().sum(0).expand(2, 3, 64)
    assert torch.allclose(x.grad.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
def test_registration(activation: str) -> None:
    weight, dense = packed(32, 24, row_order="gate_up")
    x = randn(2, 3, 24, dtype=torch.bfloat16).requires_grad_()
    bias = randn(32, dtype=torch.bfloat16).requires_grad_()
    arguments = (x, *Packed24.of(weight), bias, None, activation, dense, "auto")
    opcheck(torch.ops.secateur.sparse24_linear.default, arguments)
    gradient = randn(2, 3, 32, dtype=torch.bfloat16)
    opcheck(
        torch.ops.secateur.sparse24_linear_input_gradient.default,
        (gradient, *Packed24.of(weight)),
    )


def test_compiles_into_one_graph() -> None:
    weight, _ = packed(32, 24)
    x = randn(5, 24, dtype=torch.bfloat16)
    compiled = torch.compile(
        lambda x: sparse24_linear(x * 2, weight) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), sparse24_linear(x * 2, weight) + 1)


def test_says_why() -> None:
    weight, _ = packed(32, 24)
    text = str(explain(randn(5, 24, dtype=torch.bfloat16), weight))
    assert text.startswith("reference: a CPU has no kernel of ours")


@pytest.mark.parametrize("ways", [2, 4, 8])
@pytest.mark.parametrize("dimension", ["rows", "columns"])
def test_slices_for_tensor_parallelism_give_the_whole(ways: int, dimension: str) -> None:
    dense = randn(64, 128, dtype=torch.bfloat16, seed=3) * random_mask(64, 128)
    whole = Canonical24.from_dense(dense)
    x = randn(5, 128, dtype=torch.float64)
    expected = sparse24_linear(x, Fragment24.from_canonical(whole))
    step = (64 if dimension == "rows" else 128) // ways
    starts = range(0, ways * step, step)
    if dimension == "rows":
        shards = [whole.slice_rows(s, s + step) for s in starts]
        parts = [sparse24_linear(x, Fragment24.from_canonical(shard)) for shard in shards]
        assert torch.equal(torch.cat(parts, dim=1), expected)
        return
    shards = [whole.slice_columns(s, s + step) for s in starts]
    parts = [
        sparse24_linear(x[:, s : s + step], Fragment24.from_canonical(shard))
        for s, shard in zip(starts, shards, strict=True)
    ]
    assert torch.allclose(torch.stack(parts).sum(0), expected, rtol=1e-12)


def test_nan_stays_in_its_token() -> None:
    weight, dense = packed(32, 64)
    x = randn(3, 64, dtype=torch.bfloat16)
    x[1, 10] = float("nan")
    y = sparse24_linear(x, weight)
    rows = torch.tensor([0, 2])
    arguments = (x[rows], dense, None, None, "none")
    assert_close(y[rows], truth(*arguments), bound(*arguments))
    assert bool(y[1].isnan()[dense[:, 10] != 0].all())


def call(**changes: Any) -> Tensor:
    weight, _ = packed(32, 64)
    values: dict[str, Any] = {"x": randn(3, 64, dtype=torch.bfloat16), "weight": weight}
    return sparse24_linear(**(values | changes))


GATE_UP = packed(32, 64, row_order="gate_up")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(3, 60).bfloat16()}, r"expected x \[\.\.\., 64\] .* got \[3, 60\]"),
        ({"x": torch.ones(()).bfloat16()}, r"expected x \[\.\.\., 64\]"),
        ({"x": torch.ones(3, 64).half()}, "expected x of the weight's dtype torch.bfloat16"),
        ({"x": torch.ones(3, 64).long()}, "expected x of dtype bfloat16 or"),
        (
            {"x": torch.ones(3, 64), "backend": "unpack"},
            "expected x of the weight's dtype torch.bfloat16, got torch.float32",
        ),
        ({"bias": torch.ones(31).bfloat16()}, r"expected bias bfloat16 \[32\], got .* \[31\]"),
        ({"bias": torch.ones(32)}, r"expected bias bfloat16 \[32\], got float32"),
        ({"residual": torch.ones(3, 31).bfloat16()}, r"expected residual bfloat16 \[3, 32\]"),
        ({"weight": GATE_UP.to_canonical()}, "expected a Fragment24, got Canonical24"),
        ({"weight": torch.ones(32, 64)}, "expected a Fragment24, got Tensor"),
        ({"activation": "gelu"}, "expected activation none or silu_and_mul, got 'gelu'"),
        ({"activation": "silu_and_mul"}, "expected a weight packed with row order gate_up"),
        ({"backend": "cutlass"}, "expected backend auto, reference, .* got 'cutlass'"),
        ({"backend": "two_gemms"}, "expected backend auto"),
        ({"backend": "cuda"}, "expected x on an NVIDIA GPU for backend cuda, got cpu"),
        ({"backend": "dense"}, "backend dense is not there: the caller gave no dense copy"),
        ({"dense": torch.ones(32, 60).bfloat16()}, r"expected a dense copy .*\[32, 64\]"),
        (
            {
                "weight": GATE_UP,
                "activation": "silu_and_mul",
                "residual": torch.ones(3, 32).bfloat16(),
            },
            r"expected residual bfloat16 \[3, 16\]",
        ),
    ],
)
def test_errors_say_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        call(**changes)


def test_a_weight_of_another_layout_is_not_explained() -> None:
    with pytest.raises(SecateurError, match="expected a Fragment24, got Tensor"):
        explain(torch.ones(3, 64), torch.ones(32, 64))  # type: ignore[arg-type]


def test_corrupt_bytes_of_the_wrong_size_are_refused_by_the_op() -> None:
    weight, _ = packed(32, 64)
    arguments = [torch.ones(1, 64).bfloat16(), *Packed24.of(weight)]
    arguments[1] = weight.data[:, :, :-1]
    with pytest.raises(SecateurError, match=r"expected data uint8 \[1, 1, 4608\]"):
        torch.ops.secateur.sparse24_linear(*arguments, None, None, "none", None, "auto")
