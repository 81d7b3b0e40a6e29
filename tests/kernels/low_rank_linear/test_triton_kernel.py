"""The Triton kernels of the low-rank linear: compiled where there is a GPU, else interpreted."""

from typing import Any

import pytest
import torch
from kernels.linears import randn, random_mask
from torch import Tensor

from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.low_rank_linear import triton_kernel
from secateur_kernels.low_rank_linear.triton_config import (
    DOWN_TILES,
    UP_TILES,
    LowRankTritonConfig,
    default_config,
)
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.testing.buffers import Surroundings, poisoned_allocations
from secateur_kernels.testing.tolerance import (
    add,
    assert_same_bits,
    assert_within,
    epilogue,
    exact,
    low_rank_product,
    product,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter rounds to bf16 towards zero.
TRUNCATES = DEVICE == "cpu"
BF16, FP16 = torch.bfloat16, torch.float16


def config(down: int, up: int, split_k: int = 1) -> LowRankTritonConfig:
    first, second = DOWN_TILES[down], UP_TILES[up]
    return LowRankTritonConfig(
        block_m=second.tokens,
        block_n=second.features,
        block_rank=first.ranks,
        block_k=first.columns,
        step_rank=second.ranks,
        split_k=split_k,
        cut_first=second.cut_first,
    )


def factors_of(columns: int, rank: int, group_rows: tuple[int, ...], dtype: torch.dtype) -> LowRank:
    down = randn(len(group_rows) * rank, columns, dtype=dtype, seed=4)
    up = randn(sum(group_rows), rank, dtype=dtype, seed=5)
    return LowRank(down, up, group_rows).to(DEVICE)


def check(
    tokens: int,
    factors: LowRank,
    chosen: LowRankTritonConfig,
    activation: str = "none",
    with_epilogue: bool = True,
    base: Tensor | None = None,
) -> None:
    """Right, repeatable, and touching nothing but its output."""
    rows, columns = factors.shape
    width = rows // 2 if activation == "silu_and_mul" else rows
    dtype = factors.up.dtype
    surroundings = Surroundings(margin=4096)
    x = surroundings.place("x", randn(tokens, columns, dtype=dtype).to(DEVICE), gap=16)
    down = surroundings.place("down", factors.down)
    up = surroundings.place("up", factors.up)
    bias = residual = None
    if with_epilogue:
        bias = surroundings.place("bias", randn(rows, dtype=dtype, seed=1).to(DEVICE))
        values = randn(tokens, width, dtype=dtype, seed=2).to(DEVICE)
        residual = surroundings.place("residual", values, gap=8)
    if base is not None:
        base = surroundings.place("base", base.to(DEVICE))
    arguments = (x, down, up, factors.group_rows, bias, residual, activation, chosen, base)
    with poisoned_allocations():
        y = triton_kernel.launch_added(*arguments)
        again = triton_kernel.launch_added(*arguments)
    surroundings.check()
    assert y.dtype == dtype
    assert y.is_contiguous()
    expected = low_rank_product(x, factors)
    for part in () if base is None else base:
        expected = add(expected, exact(part))
    expected = epilogue(expected, bias, residual, activation)
    assert_within(y, expected, truncates=TRUNCATES and dtype == BF16)
    assert torch.equal(y, again)


@pytest.mark.parametrize(
    ("tokens", "columns", "rank", "group_rows", "chosen", "dtype"),
    [
        (1, 4, 16, (24,), config(0, 0), FP16),
        (3, 100, 48, (80,), config(1, 0, 4), BF16),
        (16, 192, 32, (65,), config(0, 0, 8), FP16),
        (17, 60, 80, (64,), config(0, 1, 2), FP16),
        (1, 1, 16, (200,), config(1, 2), BF16),
        (33, 130, 32, (72,), config(2, 3, 2), FP16),
        (70, 68, 16, (40,), config(3, 4), BF16),
    ],
)
def test_equals_the_product_of_the_factors(
    tokens: int,
    columns: int,
    rank: int,
    group_rows: tuple[int, ...],
    chosen: LowRankTritonConfig,
    dtype: torch.dtype,
) -> None:
    check(tokens, factors_of(columns, rank, group_rows, dtype), chosen)


@pytest.mark.parametrize("chosen", [config(0, 0, 4), config(0, 1, 2)], ids=["fused", "cut first"])
@pytest.mark.parametrize(
    "group_rows",
    [(64, 16, 16), (24, 24), (13, 0, 9, 70, 1, 7, 2), (16,) * 7],
    ids=["qkv", "two", "odd", "many"],
)
def test_every_group_of_rows_has_its_own_factors(
    group_rows: tuple[int, ...], chosen: LowRankTritonConfig
) -> None:
    check(5, factors_of(72, 16, group_rows, FP16), chosen)


@pytest.mark.parametrize("chosen", [config(0, 0, 4), config(0, 1, 2)], ids=["fused", "cut first"])
@pytest.mark.parametrize("group_rows", [(96,), (48, 48), (10,)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_multiplies_gate_and_up(
    group_rows: tuple[int, ...], chosen: LowRankTritonConfig, dtype: torch.dtype
) -> None:
    check(5, factors_of(72, 32, group_rows, dtype), chosen, "silu_and_mul")


@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
def test_starts_from_the_sum_of_the_slots_of_base(activation: str) -> None:
    factors = factors_of(68, 16, (48,), FP16)
    base = randn(6, 5, 48, dtype=torch.float32, seed=6)
    check(5, factors, config(0, 0), activation, base=base)
    check(5, factors, config(0, 1), activation, with_epilogue=False, base=base[:1])


@pytest.mark.parametrize("row_order", ["natural", "gate_up"])
def test_a_sparse_part_is_added_before_the_epilogue(row_order: Any) -> None:
    activation = "none" if row_order == "natural" else "silu_and_mul"
    weight, mask = randn(64, 132, dtype=FP16, seed=3), random_mask(64, 132)
    packed = Fragment24.from_dense(weight, mask, row_order).to(DEVICE)
    factors = factors_of(132, 16, (64,), FP16)
    x = randn(5, 132, dtype=FP16).to(DEVICE)
    bias = randn(64, dtype=FP16, seed=1).to(DEVICE)
    rest = (factors.down, factors.up, factors.group_rows, bias, None, activation, config(0, 0))
    with poisoned_allocations():
        y = triton_kernel.launch(x, Packed24.of(packed), *rest)
    dense = weight.masked_fill(~mask, 0.0).to(DEVICE)
    both = add(product(x, dense), low_rank_product(x, factors))
    assert_within(y, epilogue(both, bias, None, activation))


@pytest.mark.parametrize("up", [0, 1])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_all_bits_of_the_intermediate_count(dtype: torch.dtype, up: int) -> None:
    # t = 2**23 + 2**11 + 1 in 24 bits, of which no two pieces of 8 or 11 bits hold all; the other
    # column of up takes everything but the 1 away again.
    down = torch.zeros(16, 4, dtype=dtype)
    down[0, :3] = torch.tensor([2.0**12, 2.0**11, 1.0])
    down[1, :2] = down[0, :2]
    factor = torch.zeros(8, 16, dtype=dtype)
    factor[:, 0], factor[:, 1] = 1.0, -1.0
    x = torch.tensor([[2.0**11, 1.0, 1.0, 0.0]], dtype=dtype, device=DEVICE)
    factors = (down.to(DEVICE), factor.to(DEVICE), (8,))
    y = triton_kernel.launch(x, None, *factors, None, None, "none", config(0, up))
    assert_same_bits(y, torch.ones(1, 8, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("up", [0, 1])
def test_infinity_and_nan_stay_with_their_token(up: int) -> None:
    factors = factors_of(64, 16, (24,), BF16)
    factors = LowRank(factors.down.abs(), factors.up.abs(), (24,))
    x = randn(3, 64, dtype=BF16).abs().to(DEVICE)
    x[0, 3], x[1, 3] = torch.inf, torch.nan
    rest = (factors.down, factors.up, (24,), None, None, "none", config(0, up))
    y = triton_kernel.launch(x, None, *rest)
    assert (y[0] == torch.inf).all()
    assert y[1].isnan().all()
    assert_within(y[2:], low_rank_product(x[2:], factors), truncates=TRUNCATES)


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_default_configs_run(tokens: int) -> None:
    check(tokens, factors_of(200, 64, (48, 16), FP16), default_config(tokens, 64, 200, 64, 132))
