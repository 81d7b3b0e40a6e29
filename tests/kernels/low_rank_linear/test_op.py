"""The low-rank linears: values, gradients, registration and every error."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.linears import ROUND_OFF, assert_close, randn, random_mask
from thoroughness import most_telling
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from secateur_kernels import (
    Fragment24,
    LowRank,
    SecateurError,
    low_rank_linear,
    sparse24_low_rank_linear,
)
from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.low_rank_linear.op import explain
from secateur_kernels.low_rank_linear.sparse_op import explain as explain_both
from secateur_kernels.sparse24_linear.packed import Packed24


def factors(group_rows: tuple[int, ...], columns: int, rank: int, dtype: torch.dtype) -> LowRank:
    down = randn(len(group_rows) * rank, columns, dtype=dtype, seed=5)
    return LowRank(down, randn(sum(group_rows), rank, dtype=dtype, seed=6), group_rows)


def dense_of(weight: LowRank) -> Tensor:
    """float64 [N, K], written without the code under test."""
    rows, start = [], 0
    for group, count in enumerate(weight.group_rows):
        down = weight.down[group * weight.rank : (group + 1) * weight.rank].double()
        rows.append(weight.up[start : start + count].double() @ down)
        start += count
    return torch.cat(rows)


@given(
    tokens=st.sampled_from([1, 3, 8, 17]),
    group_rows=st.sampled_from([(16,), (7,), (64, 16, 16), (24, 24)]),
    columns=st.sampled_from([5, 64, 100]),
    rank=st.sampled_from([1, 16, 24]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    backend=st.sampled_from(["reference", "two_gemms", "auto"]),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_dense_product(
    tokens: int,
    group_rows: tuple[int, ...],
    columns: int,
    rank: int,
    dtype: torch.dtype,
    backend: Any,
) -> None:
    weight = factors(group_rows, columns, rank, dtype)
    x, bias = randn(tokens, columns, dtype=dtype), randn(sum(group_rows), dtype=dtype, seed=1)
    residual = randn(tokens, sum(group_rows), dtype=dtype, seed=2)
    y = low_rank_linear(x, weight, bias=bias, residual=residual, backend=backend)
    dense = dense_of(weight)
    expected = apply_epilogue(x.double() @ dense.T, bias, residual, "none")
    # Sums over K and r in fp32; `two_gemms` rounds the intermediate to the dtype of x as well.
    absolute = LowRank(weight.down.abs(), weight.up.abs(), group_rows)
    magnitudes = x.double().abs() @ dense_of(absolute).T + bias.double().abs()
    wide = ROUND_OFF[torch.float32] if dtype != torch.float64 else 2.0**-53
    narrow = ROUND_OFF.get(dtype, 2.0**-53)
    allowed = (columns + rank + 8) * wide * magnitudes + 2 * narrow * expected.abs() + 1e-7
    if backend != "reference":
        allowed = allowed + 4 * narrow * (magnitudes + residual.double().abs())
    assert_close(y, expected, allowed)


@pytest.mark.parametrize(
    ("groups", "tokens"),
    most_telling(list(product(((32,), (16, 16)), ((2, 2), ()))), [((32,), ()), ((16, 16), (2, 2))]),
)
def test_gradients_against_finite_differences(
    groups: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    weight = factors(groups, 12, 3, torch.float64)
    x = randn(*tokens, 12, dtype=torch.float64).requires_grad_()
    down, up = weight.down.requires_grad_(), weight.up.requires_grad_()
    bias = randn(32, dtype=torch.float64, seed=1).requires_grad_()
    residual = randn(*tokens, 16, dtype=torch.float64, seed=2).requires_grad_()

    def multiply(x: Tensor, d: Tensor, u: Tensor, b: Tensor, r: Tensor) -> Tensor:
        low_rank = LowRank(d, u, groups)
        return low_rank_linear(x, low_rank, bias=b, residual=r, activation="silu_and_mul")

    assert gradcheck(multiply, (x, down, up, bias, residual))
    arguments = (x, down, up, groups, bias, residual, "silu_and_mul", "auto")
    opcheck(torch.ops.secateur.low_rank_linear.default, arguments)


def sparse_part(rows: int, columns: int, row_order: Any = "natural") -> tuple[Fragment24, Tensor]:
    dense = randn(rows, columns, dtype=torch.bfloat16, seed=3) * random_mask(rows, columns)
    return Fragment24.from_dense(dense, random_mask(rows, columns), row_order), dense


@pytest.mark.parametrize("backend", ["reference", "unpack", "auto"])
def test_adds_the_sparse_part(backend: Any) -> None:
    sparse, dense = sparse_part(48, 64)
    weight = factors((32, 16), 64, 16, torch.bfloat16)
    x = randn(2, 3, 64, dtype=torch.bfloat16)
    y = sparse24_low_rank_linear(x, sparse, weight, backend=backend)
    expected = x.double() @ (dense.double() + dense_of(weight)).T
    assert torch.allclose(y.double(), expected, rtol=0.03, atol=0.03 * float(expected.std()))
    wide = sparse24_low_rank_linear(
        x.double(), sparse, LowRank(weight.down.double(), weight.up.double(), (32, 16))
    )
    assert torch.allclose(wide, expected, rtol=1e-12)


@pytest.mark.parametrize("tokens", [(3,), ()])
def test_gradients_of_sparse_plus_low_rank(tokens: tuple[int, ...]) -> None:
    sparse, _ = sparse_part(32, 12, "gate_up")
    weight = factors((16, 16), 12, 3, torch.float64)
    x = randn(*tokens, 12, dtype=torch.float64).requires_grad_()
    down, up = weight.down.requires_grad_(), weight.up.requires_grad_()
    bias = randn(32, dtype=torch.float64, seed=1).requires_grad_()
    residual = randn(*tokens, 16, dtype=torch.float64, seed=2).requires_grad_()

    def multiply(x: Tensor, d: Tensor, u: Tensor, b: Tensor, r: Tensor) -> Tensor:
        low_rank = LowRank(d, u, (16, 16))
        return sparse24_low_rank_linear(
            x, sparse, low_rank, bias=b, residual=r, activation="silu_and_mul"
        )

    assert gradcheck(multiply, (x, down, up, bias, residual))
    rest = (down, up, (16, 16), bias, residual, "silu_and_mul", "auto")
    opcheck(torch.ops.secateur.sparse24_low_rank_linear.default, (x, *Packed24.of(sparse), *rest))


@pytest.mark.parametrize(("tokens", "rows", "columns"), [(0, 8, 8), (3, 8, 0), (3, 0, 8)])
def test_empty_problems(tokens: int, rows: int, columns: int) -> None:
    weight = factors((rows,), columns, 4, torch.float32)
    bias = randn(rows, dtype=torch.float32)
    y = low_rank_linear(torch.ones(tokens, columns), weight, bias=bias)
    assert torch.equal(y, bias.expand(tokens, rows))


def test_compiles_into_one_graph() -> None:
    weight = factors((8, 8), 12, 4, torch.float32)
    x = randn(5, 12, dtype=torch.float32)
    compiled = torch.compile(
        lambda x: low_rank_linear(x + 1, weight), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), low_rank_linear(x + 1, weight))


def test_says_why() -> None:
    weight = factors((8,), 12, 4, torch.float32)
    assert str(explain(torch.ones(2, 12), weight)).startswith("two_gemms: a CPU has no kernel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(3, 13)}, r"expected x \[\.\.\., 12\]"),
        ({"x": torch.ones(3, 12).half()}, "expected x of the factors' dtype torch.float32"),
        ({"bias": torch.ones(15)}, r"expected bias float32 \[16\]"),
        ({"weight": torch.ones(16, 12)}, "expected a LowRank, got Tensor"),
        ({"backend": "dense"}, "reference, triton, cuda, two_gemms, got 'dense'"),
        ({"backend": "cuda"}, "expected x on an NVIDIA GPU for backend cuda, got cpu"),
        ({"activation": "relu"}, "expected activation none or silu_and_mul"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    weight = factors((16,), 12, 4, torch.float32)
    values: dict[str, Any] = {"x": torch.ones(3, 12), "weight": weight}
    with pytest.raises(SecateurError, match=message):
        low_rank_linear(**(values | changes))


def test_factors_beside_a_sparse_part_are_checked_too() -> None:
    x = torch.ones(1, 12).bfloat16()
    sparse, _ = sparse_part(24, 12)
    with pytest.raises(SecateurError, match=r"expected x of the factors' dtype torch\.float32"):
        sparse24_low_rank_linear(x, sparse, factors((24,), 12, 4, torch.float32))
    three = factors((8, 8, 8), 12, 4, torch.bfloat16)
    with pytest.raises(SecateurError, match=r"expected one or two groups \(gate, up\).* got 3"):
        sparse24_low_rank_linear(x, sparse, three, activation="silu_and_mul")


def test_weights_of_another_layout_are_refused() -> None:
    x, low_rank = torch.ones(1, 12).bfloat16(), factors((24,), 12, 4, torch.bfloat16)
    sparse: Any
    dense: Any
    sparse, dense = sparse_part(24, 12)
    for call in (sparse24_low_rank_linear, explain_both):
        with pytest.raises(SecateurError, match="expected a Fragment24, got Tensor"):
            call(x, dense, low_rank)
        with pytest.raises(SecateurError, match="expected a LowRank, got Fragment24"):
            call(x, sparse, sparse)
    with pytest.raises(SecateurError, match="expected a LowRank, got Fragment24"):
        explain(x, sparse)


def test_errors_of_groups() -> None:
    three = factors((8, 8, 8), 12, 4, torch.float32)
    with pytest.raises(SecateurError, match=r"expected one or two groups \(gate, up\).* got 3"):
        low_rank_linear(torch.ones(1, 12), three, activation="silu_and_mul")
    uneven = factors((10, 6), 12, 4, torch.float32)
    with pytest.raises(SecateurError, match=r"as many up rows as gate rows .* got \[10, 6\]"):
        low_rank_linear(torch.ones(1, 12), uneven, activation="silu_and_mul")
    sparse, _ = sparse_part(32, 12)
    with pytest.raises(SecateurError, match=r"expected factors of a weight \[32, 12\]"):
        sparse24_low_rank_linear(
            torch.ones(1, 12).bfloat16(), sparse, factors((16,), 12, 4, torch.bfloat16)
        )
