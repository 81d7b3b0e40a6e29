"""The Triton kernel of the 2:4 linear: compiled where there is a GPU, else in the interpreter."""

from typing import Any

import pytest
import torch
from kernels.linears import randn, random_mask
from torch import Tensor

from secateur_kernels.layouts import Fragment24
from secateur_kernels.sparse24_linear import triton_kernel
from secateur_kernels.sparse24_linear.triton_config import (
    TILES,
    Sparse24TritonConfig,
    default_config,
)
from secateur_kernels.testing.buffers import Surroundings, poisoned_allocations
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within, epilogue, product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter rounds to bf16 towards zero.
TRUNCATES = DEVICE == "cpu"
BF16, FP16 = torch.bfloat16, torch.float16


def config(tile: int, split_k: int = 1, group_m: int = 8) -> Sparse24TritonConfig:
    shape = TILES[tile]
    sizes = (shape.tokens, shape.rows, shape.columns, split_k, shape.warps, shape.stages, group_m)
    return Sparse24TritonConfig(*sizes)


def weight_of(
    rows: int, columns: int, dtype: torch.dtype, row_order: Any = "natural"
) -> tuple[Fragment24, Tensor]:
    weight, mask = randn(rows, columns, dtype=dtype, seed=3), random_mask(rows, columns)
    dense = weight.masked_fill(~mask, 0.0)
    packed = Fragment24.from_dense(weight, mask, row_order).to(DEVICE)
    return packed, dense.to(DEVICE)


@pytest.fixture(params=[False, True], ids=["groups together", "groups split"])
def any_column_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both orders of columns, whatever the device."""
    monkeypatch.setattr(triton_kernel, "splits_groups", lambda block_m, major: request.param)


def check(
    tokens: int,
    packed: Fragment24,
    dense: Tensor,
    chosen: Sparse24TritonConfig,
    activation: str = "none",
    with_bias: bool = True,
    with_residual: bool = True,
) -> None:
    """Right, repeatable, and touching nothing but its output."""
    rows, columns = packed.shape
    width = rows // 2 if activation == "silu_and_mul" else rows
    dtype = dense.dtype
    surroundings = Surroundings(margin=4096)
    x = surroundings.place("x", randn(tokens, columns, dtype=dtype).to(DEVICE), gap=16)
    data = surroundings.place("data", packed.data)
    bias = residual = None
    if with_bias:
        bias = surroundings.place("bias", randn(rows, dtype=dtype, seed=1).to(DEVICE))
    if with_residual:
        values = randn(tokens, width, dtype=dtype, seed=2).to(DEVICE)
        residual = surroundings.place("residual", values, gap=8)
    gate_up = packed.row_order == "gate_up"
    arguments = (x, data, rows, columns, gate_up, bias, residual, activation, chosen)
    with poisoned_allocations():
        y = triton_kernel.launch(*arguments)
        again = triton_kernel.launch(*arguments)
    surroundings.check()
    assert y.dtype == dtype
    assert y.is_contiguous()
    expected = epilogue(product(x, dense), bias, residual, activation)
    assert_within(y, expected, truncates=TRUNCATES and dtype == BF16)
    assert torch.equal(y, again)


@pytest.mark.usefixtures("any_column_order")
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "tile", "split_k", "dtype"),
    [
        (1, 24, 4, 0, 1, FP16),
        (3, 64, 60, 0, 1, BF16),
        (16, 80, 64, 1, 1, FP16),
        (17, 200, 100, 2, 1, FP16),
        (1, 80, 192, 0, 2, FP16),
        (33, 130, 196, 4, 3, BF16),
        (2, 24, 452, 3, 16, FP16),
    ],
)
def test_equals_the_dense_product(
    tokens: int, rows: int, columns: int, tile: int, split_k: int, dtype: torch.dtype
) -> None:
    check(tokens, *weight_of(rows, columns, dtype), config(tile, split_k))


@pytest.mark.usefixtures("any_column_order")
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
def test_gate_and_up_rows_come_out_in_logical_order(activation: str, split_k: int) -> None:
    packed, dense = weight_of(80, 136, FP16, "gate_up")
    check(5, packed, dense, config(0, split_k), activation)


def test_the_epilogue_is_optional_and_works_in_bf16() -> None:
    packed, dense = weight_of(96, 64, BF16, "gate_up")
    check(3, packed, dense, config(1), "silu_and_mul", with_residual=False)
    check(3, packed, dense, config(1), "silu_and_mul", with_bias=False)
    check(3, packed, dense, config(1), "none", with_bias=False, with_residual=False)


@pytest.mark.parametrize("group_m", [1, 2, 8])
def test_every_tile_is_computed_once_in_any_order_of_blocks(group_m: int) -> None:
    check(50, *weight_of(130, 64, FP16), config(0, group_m=group_m))


def test_the_largest_tile() -> None:
    check(130, *weight_of(72, 68, FP16), config(5))


@pytest.mark.usefixtures("any_column_order")
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_one_hot_x_recovers_every_weight(dtype: torch.dtype) -> None:
    packed, dense = weight_of(64, 128, dtype)
    x = torch.eye(128, dtype=dtype, device=DEVICE)
    y = triton_kernel.launch(x, packed.data, 64, 128, False, None, None, "none", config(0))
    assert_same_bits(y, dense.T.contiguous())


@pytest.mark.parametrize("row_order", ["natural", "gate_up"])
def test_partial_sums_of_integers_are_exact(row_order: Any) -> None:
    packed, dense = weight_of(48, 320, FP16, row_order)
    packed = Fragment24.from_dense((4 * dense).round().clamp(-8, 8), row_order=row_order)
    x = (2 * randn(7, 320, dtype=FP16)).round().to(DEVICE)
    data = packed.to(DEVICE).data
    gate_up = row_order == "gate_up"
    with poisoned_allocations():
        partials = triton_kernel.launch_partials(x, data, 48, 320, gate_up, config(0, 3))
    assert partials.shape == (3, 7, 48)
    weight = packed.to_dense().double().to(DEVICE)
    for part, columns in zip(partials, torch.arange(320).split(128), strict=True):
        assert_same_bits(part, (x[:, columns].double() @ weight[:, columns].T).float())


def test_tokens_do_not_reach_each_other() -> None:
    packed, dense = weight_of(64, 64, FP16)
    x = randn(4, 64, dtype=FP16).to(DEVICE)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    y = triton_kernel.launch(x, packed.data, 64, 64, False, None, None, "none", config(0))
    assert not y[1].isfinite().any()
    assert not y[2].isfinite().all()
    for token in (0, 3):
        assert_within(y[token : token + 1], product(x[token : token + 1], dense))


@pytest.mark.parametrize("tokens", [1, 20, 70])
def test_default_configs_run(tokens: int) -> None:
    packed, dense = weight_of(64, 256, FP16)
    check(tokens, packed, dense, default_config(tokens, 64, 256, 132))
