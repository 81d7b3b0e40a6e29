"""The low-rank kernels' own source, thread by thread on an emulated GPU, against plain torch."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.low_rank_case import Call, Case, factors_of, run
from thoroughness import examples
from torch import Tensor

from secateur_kernels.layouts import LowRank

CASES = {
    "one token": Case(),
    "eight tokens, several chunks": Case(8, (48,), 400, 208, (4, 1, 2, 1), (2, 1, 3, 2)),
    "two token tiles": Case(16, (40,), 256, 144, (2, 1, 2, 2), (2, 1, 2, 3)),
    "two row tiles": Case(9, (80,), 256, 144, (2, 2, 2, 1), (2, 2, 2, 2)),
    "four token tiles": Case(30, (48,), 256, 48, (2, 2, 2, 1), (1, 2, 2, 1)),
    "eight token tiles": Case(61, (40,), 136, 32, (2, 2, 1, 1), (2, 2, 1, 2)),
    "K in more ranges than chunks": Case(3, (32,), 300, 16, (2, 1, 1, 7), (1, 1, 1, 2)),
    "many ranges of K": Case(5, (32,), 1280, 32, (2, 1, 2, 10), (1, 1, 2, 1)),
    "more warps than chunks": Case(2, (64,), 128, 16, (8, 1, 2, 1), (8, 1, 2, 3)),
    "more stages than chunks": Case(2, (32,), 128, 16, (1, 1, 5, 1), (1, 1, 5, 1)),
    "one stage": Case(2, (96,), 640, 272, (2, 1, 1, 1), (2, 1, 1, 2)),
    "one row": Case(1, (1,), 8, 16),
    "odd rows": Case(11, (37,), 128, 16, bias=True, residual=True),
    "K that is no multiple of 8": Case(8, (32,), 76, 32, residual=True),
    "odd K": Case(4, (32,), 133, 16),
    "smallest": Case(1, (1,), 1, 16),
    "bias and residual": Case(6, (96,), 64, 32, up=(2, 1, 2, 4), bias=True, residual=True),
    "three groups": Case(5, (64, 16, 16), 192, 32, (2, 1, 2, 1), (2, 1, 2, 3), bias=True),
    "groups of any size": Case(7, (37, 1, 0, 26), 64, 16, (2, 2, 2, 1), (1, 2, 2, 2)),
    "groups of odd size": Case(3, (17, 18), 64, 16, up=(1, 1, 2, 1), residual=True, bias=True),
    "eight groups": Case(2, (16,) * 8, 64, 16, up=(1, 1, 1, 3)),
    "rows of x apart": Case(8, (32,), 128, 16, x_padding=8),
    "rows of x apart and misaligned": Case(8, (32,), 128, 16, x_padding=1, residual=True),
    "x misaligned": Case(8, (32,), 128, 16, x_start=3, residual=True),
    "down misaligned": Case(8, (32,), 128, 16, down_start=4),
    "dependent": Case(8, (64,), 384, 144, (2, 1, 2, 2), (2, 1, 3, 2), dependent=True),
    "2:4 beside": Case(3, (64,), 256, 32, (2, 1, 2, 1), (2, 1, 2, 2), sparse=True),
    "2:4 beside, two row tiles": Case(
        12, (72,), 320, 144, (2, 1, 2, 1), (2, 2, 2, 2), sparse=True, bias=True, residual=True
    ),
    "2:4 beside, 40 tokens": Case(40, (64,), 200, 16, (2, 2, 2, 1), (2, 2, 2, 1), sparse=True),
    "2:4 beside, groups": Case(
        4, (48, 16, 32), 128, 32, (2, 1, 2, 1), (2, 2, 2, 2), sparse=True, dependent=True
    ),
    "2:4 beside, gate and up apart": Case(
        6, (80,), 192, 32, (2, 1, 2, 1), (2, 2, 2, 2), sparse=True, gate_up=True, bias=True
    ),
    "2:4 beside, gate and up in two groups": Case(
        6, (24, 24), 192, 144, (2, 1, 2, 1), (3, 2, 2, 1), sparse=True, gate_up=True, residual=True
    ),
    "2:4 beside, K no multiple of 8": Case(
        9, (33,), 76, 16, (2, 1, 2, 1), (2, 1, 2, 1), sparse=True, x_padding=3
    ),
}
BOTH = (1, 1)
CASES |= {
    "boxes: one token": Case(1, (32,), 256, 32, (8, 1, 2, 1), (8, 1, 2, 2), boxes=BOTH),
    "boxes: several stages and row blocks": Case(
        8, (200,), 1032, 528, (8, 2, 2, 1), (8, 2, 2, 2), boxes=BOTH
    ),
    "boxes: 16 tokens, four row tiles": Case(
        16, (130,), 776, 336, (8, 4, 2, 2), (8, 4, 2, 3), bias=True, residual=True, boxes=BOTH
    ),
    "boxes: three row tiles": Case(
        9, (100,), 520, 304, (8, 3, 3, 2), (8, 3, 3, 1), dependent=True, boxes=BOTH
    ),
    "boxes: smallest": Case(1, (1,), 8, 16, (8, 1, 2, 1), (8, 1, 2, 1), boxes=BOTH),
    "boxes: more ranges than chunks": Case(
        3, (16,), 264, 16, (8, 1, 2, 5), (8, 1, 2, 1), boxes=BOTH
    ),
    "boxes: groups of any size": Case(
        5,
        (37, 1, 0, 90),
        128,
        144,
        (8, 2, 2, 1),
        (8, 2, 2, 2),
        bias=True,
        residual=True,
        boxes=BOTH,
    ),
    "boxes: rows of x apart": Case(
        12, (40,), 264, 48, (8, 1, 2, 1), (8, 4, 2, 1), x_padding=8, residual=True, boxes=BOTH
    ),
    "clusters: one token": Case(1, (64,), 512, 272, (8, 2, 2, 4), (8, 2, 2, 2), boxes=(4, 2)),
    "clusters: several row blocks": Case(
        8, (230,), 1032, 400, (8, 4, 2, 4), (8, 2, 2, 4), boxes=(2, 2)
    ),
    "clusters: 16 tokens": Case(
        16, (300,), 776, 528, (8, 4, 2, 4), (8, 4, 2, 4), bias=True, residual=True, boxes=(4, 4)
    ),
    "clusters of eight": Case(
        16, (130,), 1160, 1040, (8, 1, 2, 8), (8, 4, 2, 8), dependent=True, boxes=(8, 8)
    ),
    "clusters: ranges without columns": Case(
        12, (200,), 264, 144, (8, 1, 2, 8), (8, 2, 2, 4), residual=True, boxes=(8, 4)
    ),
    "clusters: groups": Case(
        9, (37, 1, 0, 90), 136, 144, (8, 2, 2, 2), (8, 2, 2, 4), residual=True, boxes=(2, 2)
    ),
    "boxes asked for ahead": Case(
        8, (200,), 1320, 784, (8, 2, 2, 1), (8, 2, 2, 2), dependent=True, boxes=BOTH, ahead=(1, 3)
    ),
    "and farther than there are": Case(
        8, (200,), 1320, 784, (8, 2, 2, 1), (8, 2, 2, 2), boxes=BOTH, ahead=(90, 90)
    ),
    "boxes of down only": Case(4, (48,), 512, 144, (8, 2, 2, 2), (2, 1, 2, 2), boxes=(1, 0)),
    "boxes of up only": Case(
        4, (48,), 511, 144, (2, 1, 2, 2), (8, 1, 2, 2), x_start=1, boxes=(0, 1)
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_integers_come_out_exactly(name: str, dtype: torch.dtype, emulator: Any) -> None:
    y, expected = run(dataclasses.replace(CASES[name], dtype=dtype), emulator)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sparse", [False, True], ids=["factors", "beside 2:4"])
@pytest.mark.parametrize("group_rows", [(80,), (40, 40)], ids=str)
def test_silu_and_multiply(
    group_rows: tuple[int, ...], sparse: bool, dtype: torch.dtype, emulator: Any
) -> None:
    case = Case(10, group_rows, 192, 32, (2, 1, 2, 1), (2, 2, 2, 2), dtype, sparse, sparse, True)
    y, expected = run(dataclasses.replace(case, bias=True, residual=True), emulator)
    # The sums are exact; exp in fp32 may move a value across one rounding to 8 or 11 bits.
    ulp = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    torch.testing.assert_close(y.float(), expected.float(), rtol=2 * ulp, atol=ulp * 2**-4)


# Pairs of row tiles; t of one group or of two, in turns and in parts.
GATED_BOXES = {
    "two row tiles": Case(8, (80,), 256, 144, (8, 1, 2, 1), (8, 2, 2, 2), boxes=(1, 1)),
    "four row tiles": Case(5, (200,), 136, 48, (8, 2, 2, 1), (8, 4, 2, 2), boxes=(1, 1)),
    "two groups": Case(6, (48, 48), 264, 400, (8, 2, 2, 1), (8, 2, 3, 2), boxes=(1, 1)),
    "two groups of four row tiles, 16 tokens": Case(
        16, (104, 104), 136, 144, (8, 2, 2, 1), (8, 4, 2, 1), dependent=True, boxes=(1, 1)
    ),
    "two groups of two row tiles, 16 tokens, clusters": Case(
        16, (80, 80), 264, 528, (8, 2, 2, 2), (8, 2, 2, 4), boxes=(2, 4)
    ),
    "asked for ahead": Case(
        8, (80,), 264, 784, (8, 2, 2, 1), (8, 2, 2, 2), boxes=(1, 1), ahead=(0, 2)
    ),
    "odd features, clusters": Case(3, (74,), 264, 272, (8, 1, 2, 2), (8, 4, 2, 2), boxes=(2, 2)),
    "second kernel only": Case(2, (37, 37), 63, 16, (1, 1, 1, 1), (8, 2, 2, 1), boxes=(0, 1)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", GATED_BOXES)
def test_silu_and_multiply_with_boxes(name: str, dtype: torch.dtype, emulator: Any) -> None:
    case = dataclasses.replace(GATED_BOXES[name], dtype=dtype, silu=True, bias=True, residual=True)
    y, expected = run(case, emulator)
    # The sums are exact; exp in fp32 may move a value across one rounding to 8 or 11 bits.
    ulp = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    torch.testing.assert_close(y.float(), expected.float(), rtol=2 * ulp, atol=ulp * 2**-4)


def test_silu_of_an_odd_number_of_features(emulator: Any) -> None:
    case = Case(3, (74,), 64, 16, (1, 1, 1, 1), (2, 2, 1, 2), silu=True, residual=True)
    y, expected = run(case, emulator)
    torch.testing.assert_close(y.float(), expected.float(), rtol=2**-7, atol=2**-12)


def test_up_rows_that_begin_at_an_odd_column(emulator: Any) -> None:
    case = Case(3, (74,), 64, 16, (1, 1, 1, 1), (2, 2, 1, 2), gate_up=True, residual=True)
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_and_division(data: st.DataObject, emulator: Any) -> None:
    sparse = data.draw(st.booleans(), "sparse")
    tokens = data.draw(st.integers(1, 64), "tokens")
    least = 2 if tokens > 16 else 1
    if sparse:
        inner = data.draw(st.lists(st.integers(1, 4).map(lambda n: 16 * n), max_size=2), "inner")
        group_rows = (*inner, data.draw(st.integers(1, 50), "last"))
    else:
        sizes = st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(any)
        group_rows = tuple(data.draw(sizes, "groups"))
    up_tiles = data.draw(st.integers(least, 2), "up tiles")
    row_blocks = sum(-(-rows // (16 * up_tiles)) for rows in group_rows)
    columns = data.draw(st.integers(1, 400), "columns")
    case = Case(
        tokens=tokens,
        group_rows=group_rows,
        columns=-(-columns // 4) * 4 if sparse else columns,
        rank=16 * data.draw(st.integers(1, 18), "rank / 16"),
        down=(
            data.draw(st.integers(1, 4), "down warps"),
            data.draw(st.integers(least, 2), "down tiles"),
            data.draw(st.integers(1, 3), "down stages"),
            data.draw(st.integers(1, 5), "splits"),
        ),
        up=(
            data.draw(st.integers(1, 4), "up warps"),
            up_tiles,
            data.draw(st.integers(1, 3), "up stages"),
            data.draw(st.integers(1, row_blocks), "up blocks"),
        ),
        dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float16])),
        sparse=sparse,
        bias=data.draw(st.booleans(), "bias"),
        residual=data.draw(st.booleans(), "residual"),
        x_padding=data.draw(st.sampled_from([0, 8, 3]), "x padding"),
        down_start=data.draw(st.sampled_from([0, 1]), "down start"),
        dependent=data.draw(st.booleans(), "dependent"),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


@settings(
    deadline=None,
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape_and_division_of_boxes(data: st.DataObject, emulator: Any) -> None:
    tokens = data.draw(st.integers(1, 16), "tokens")
    sizes = st.lists(st.integers(0, 150), min_size=1, max_size=3).filter(any)
    group_rows = tuple(data.draw(sizes, "groups"))
    rows = st.integers(1, 4)
    down_tiles, up_tiles = data.draw(rows, "down tiles"), data.draw(rows, "up tiles")
    clusters = st.sampled_from([1, 2, 4])
    cluster = data.draw(clusters, "down cluster")
    splits = cluster * data.draw(st.integers(1, 2), "clusters of a row block")
    fitting = clusters.filter(lambda size: size <= up_tiles * (1 if tokens <= 8 else 2))
    up_cluster = data.draw(fitting, "up cluster")
    row_blocks = sum(-(-rows // (16 * up_tiles)) for rows in group_rows)
    case = Case(
        tokens=tokens,
        group_rows=group_rows,
        columns=8 * data.draw(st.integers(1, 160), "columns / 8"),
        rank=16 * data.draw(st.integers(1, 36), "rank / 16"),
        down=(8, down_tiles, data.draw(st.integers(2, 4), "down stages"), splits),
        up=(
            8,
            up_tiles,
            data.draw(st.integers(2, 4), "up stages"),
            up_cluster * data.draw(st.integers(1, row_blocks), "up clusters"),
        ),
        dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float16])),
        bias=data.draw(st.booleans(), "bias"),
        residual=data.draw(st.booleans(), "residual"),
        x_padding=data.draw(st.sampled_from([0, 8]), "x padding"),
        dependent=data.draw(st.booleans(), "dependent"),
        boxes=(cluster, up_cluster),
        ahead=(data.draw(st.integers(0, 4), "down ahead"), data.draw(st.integers(0, 4), "ahead")),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


# The plain kernels, and those of boxes in clusters of two.
PLAIN = Case()
BOXED = Case(down=(8, 2, 2, 2), up=(8, 2, 2, 2), boxes=(2, 2))


@pytest.mark.parametrize("case", [PLAIN, BOXED], ids=["plain", "boxes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_intermediate_keeps_24_bits(dtype: torch.dtype, case: Case, emulator: Any) -> None:
    # Two columns of t that differ in their last bits only, and of which y is the difference.
    x = torch.zeros(2, 128, dtype=dtype)
    x[:, :4] = torch.tensor([[4096.0, 64.0, 1.0, 1.0], [-4096.0, 64.0, 2.0, 1.0]])
    down = torch.zeros(16, 128, dtype=dtype)
    down[0, :4] = torch.tensor([2047 if dtype == torch.float16 else 2032, 63.0, 32.0, 17.0])
    down[1] = down[0]
    down[1, 3] = 16.0
    up = torch.zeros(16, 16, dtype=dtype)
    up[:, 0], up[:, 1] = 1.0, -1.0
    y = torch.full((2, 16), torch.nan, dtype=dtype)
    case = dataclasses.replace(case, dtype=dtype)
    Call(x, LowRank(down, up, (16,)), None, y, case).run(emulator, 0)
    assert (y == 1.0).all()


@pytest.mark.parametrize("case", [PLAIN, BOXED], ids=["plain", "boxes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_infinity_and_nan_of_the_intermediate_come_through(
    dtype: torch.dtype, case: Case, emulator: Any
) -> None:
    x = torch.zeros(3, 64, dtype=dtype)
    x[0, 0], x[1, 0], x[2, 0] = torch.inf, -torch.inf, torch.nan
    down = torch.ones(16, 64, dtype=dtype)
    up = torch.ones(16, 16, dtype=dtype)
    y = torch.zeros(3, 16, dtype=dtype)
    case = dataclasses.replace(case, dtype=dtype)
    Call(x, LowRank(down, up, (16,)), None, y, case).run(emulator, 0)
    assert (y[0] == torch.inf).all()
    assert (y[1] == -torch.inf).all()
    assert y[2].isnan().all()


@pytest.mark.parametrize("case", [PLAIN, BOXED], ids=["plain", "boxes"])
def test_an_intermediate_beyond_fp16_stays(case: Case, emulator: Any) -> None:
    x = torch.full((1, 64), 1024.0, dtype=torch.float16)
    down = torch.full((16, 64), 1024.0, dtype=torch.float16)
    up = torch.full((16, 16), 2.0**-16, dtype=torch.float16)
    y = torch.zeros(1, 16, dtype=torch.float16)
    case = dataclasses.replace(case, dtype=torch.float16)
    Call(x, LowRank(down, up, (16,)), None, y, case).run(emulator, 0)
    assert (y == 16384.0).all()  # of t = 2**26


@pytest.mark.parametrize("seed", range(24))
def test_a_warp_that_adds_may_fall_behind(seed: int, emulator: Any) -> None:
    # Sixteen row blocks in a row, each with next to nothing to multiply.
    y, expected = run(Case(1, (256,), 8, 16, (1, 1, 1, 1), (3, 1, 2, 1), seed=seed), emulator)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("seed", range(12))
def test_a_thread_block_of_a_cluster_may_fall_behind(seed: int, emulator: Any) -> None:
    # Row blocks in a row, each with next to nothing to multiply.
    tiling = (8, 2, 2, 2)
    y, expected = run(Case(1, (256,), 8, 144, tiling, tiling, boxes=(2, 2), seed=seed), emulator)
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    "shape",
    [
        Case(4, (80,), 512, 272, (2, 1, 2, 3), (2, 1, 2, 3)),
        Case(4, (80,), 512, 272, (8, 2, 2, 4), (8, 2, 2, 4), boxes=(4, 2)),
    ],
    ids=["plain", "boxes"],
)
def test_the_order_of_thread_blocks_does_not_change_a_bit(shape: Case, emulator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 512, generator=generator).bfloat16()
    plain = factors_of(shape, generator)
    noisy = plain.up * torch.rand(plain.up.shape, generator=generator).bfloat16()
    factors = LowRank(plain.down / 16, noisy, plain.group_rows)
    results: list[Tensor] = []
    for seed in range(4):
        y = torch.empty(4, 80, dtype=x.dtype)
        Call(x, factors, None, y, shape).run(emulator, seed)
        results.append(y)
    assert all(torch.equal(results[0], other) for other in results[1:])
    exact = x.double() @ factors.down.double().T @ factors.up.double().T
    torch.testing.assert_close(results[0].double(), exact, rtol=2**-8, atol=2**-8)
