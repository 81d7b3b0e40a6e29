"""The skinny kernel's own source, thread by thread on an emulated GPU, and the dense product."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.skinny_case import Case, run, weight_of

from secateur_kernels.layouts import Fragment24

CASES = {
    "one token": Case(),
    "eight tokens, two panels, four steps": Case(8, 128, 256, warps=4, stages=3),
    "two token tiles": Case(16, 128, 128, warps=4),
    "four token tiles": Case(32, 64, 192),
    "eight token tiles": Case(64, 128, 128, warps=4),
    "four row tiles": Case(9, 256, 128, warps=4, row_tiles=4, blocks=2),
    "four row tiles, eight token tiles": Case(50, 128, 64, warps=2, row_tiles=4),
    "more stages than steps": Case(3, 64, 128, stages=5),
    "split of K": Case(5, 128, 512, warps=4, blocks=4, stages=2),
    "uneven split of K": Case(5, 64, 448, blocks=3),
    "split of K, 64 tokens": Case(64, 128, 256, warps=4, blocks=3),
    "ranges across row blocks": Case(7, 320, 192, blocks=7),
    "ranges of several row blocks": Case(7, 448, 128, blocks=3),
    "whole row blocks in ranges": Case(2, 384, 128, blocks=3),
    "one unit a block": Case(2, 128, 192, blocks=6),
    "a last row block without its panels": Case(4, 192, 128, warps=8, blocks=1),
    "panels missing and K split": Case(4, 320, 256, warps=8, blocks=6),
    "rows beyond N": Case(3, 50, 64),
    "odd N": Case(11, 37, 128, residual=True, bias=True),
    "K that is no multiple of 64": Case(8, 64, 100),
    "K that is no multiple of 8": Case(8, 64, 76, residual=True),
    "smallest": Case(1, 1, 4),
    "the next kernel let start late": Case(3, 64, 640, stages=2, lead=3),
    "and later than there are steps": Case(3, 64, 256, lead=9),
    "weights asked for ahead": Case(3, 200, 640, warps=4, blocks=3, ahead=3),
    "and farther than there are steps": Case(3, 320, 256, warps=8, blocks=2, ahead=900),
    "bias and residual": Case(6, 96, 64, warps=4, bias=True, residual=True),
    "bias and residual, split": Case(6, 96, 256, blocks=5, bias=True, residual=True),
    "gate and up apart": Case(6, 96, 64, gate_up=True, bias=True, residual=True),
    "rows of x apart": Case(8, 64, 128, x_padding=8),
    "rows of x apart and misaligned": Case(8, 64, 128, x_padding=1, residual=True),
    "x misaligned": Case(8, 64, 128, x_start=3, residual=True),
    "x misaligned, K no multiple of 64": Case(20, 64, 76, x_start=1, x_padding=3),
}


@pytest.mark.parametrize("dependent", [False, True], ids=["alone", "dependent"])
@pytest.mark.parametrize("bulk", [True, False], ids=["bulk copies", "cp.async"])
@pytest.mark.parametrize("name", CASES)
def test_integers_come_out_exactly(name: str, bulk: bool, dependent: bool, emulator: Any) -> None:
    dtype = torch.bfloat16 if len(name) % 2 else torch.float16
    case = dataclasses.replace(CASES[name], bulk=bulk, dependent=dependent, dtype=dtype)
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_silu_and_multiply(dtype: torch.dtype, blocks: int, emulator: Any) -> None:
    case = Case(10, 96, 192, warps=4, dtype=dtype, gate_up=True, silu=True, blocks=blocks)
    y, expected = run(dataclasses.replace(case, bias=True, residual=True), emulator)
    # The sums are exact; exp in fp32 may move a value across one rounding to 8 or 11 bits.
    ulp = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    torch.testing.assert_close(y.float(), expected.float(), rtol=2 * ulp, atol=ulp * 2**-4)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_tiling_and_schedule(data: st.DataObject, emulator: Any) -> None:
    gate_up = data.draw(st.booleans(), "gate_up")
    rows = data.draw(st.integers(1, 12).map(lambda n: 16 * n) if gate_up else st.integers(1, 200))
    columns = 4 * data.draw(st.integers(1, 80), "columns / 4")
    row_tiles = data.draw(st.sampled_from([2, 4]), "row tiles")
    warps = data.draw(st.sampled_from([2, 4, 6] if row_tiles == 2 else [1, 2, 3]), "warps")
    panels = warps * row_tiles // 4
    units = -(-rows // (64 * panels)) * -(-columns // 64)
    case = Case(
        tokens=data.draw(st.integers(1, 64), "tokens"),
        rows=rows,
        columns=columns,
        warps=warps,
        row_tiles=row_tiles,
        stages=data.draw(st.integers(2, 4), "stages"),
        blocks=data.draw(st.integers(1, units), "blocks"),
        dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float16])),
        bulk=data.draw(st.booleans(), "bulk"),
        gate_up=gate_up,
        bias=data.draw(st.booleans(), "bias"),
        residual=data.draw(st.booleans(), "residual"),
        dependent=data.draw(st.booleans(), "dependent"),
        lead=data.draw(st.integers(0, 6), "lead"),
        ahead=data.draw(st.integers(0, 5), "ahead"),
        x_padding=data.draw(st.sampled_from([0, 8, 3]), "x padding"),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


def test_nan_at_a_dropped_column_does_not_reach_the_row(emulator: Any) -> None:
    dense = torch.zeros(64, 64, dtype=torch.bfloat16)
    dense[:, 0::4], dense[:, 1::4] = 1.0, 2.0
    dense[7, 0::4], dense[7, 3::4] = 0.0, 1.0
    packed = Fragment24.from_dense(dense)
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    x[0, 3::4] = torch.nan
    y = torch.empty(1, 64, dtype=torch.bfloat16)
    emulator.skinny(emulator.skinny_arguments(x, packed, y, (2, 2, 2, 1)), True, 0)
    assert y[0, 7].isnan()
    assert (y[0, torch.arange(64) != 7] == 48.0).all()


def test_the_order_of_thread_blocks_does_not_change_a_bit(emulator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = weight_of(Case(rows=128, columns=512), generator)
    dense = dense * torch.rand(dense.shape, generator=generator).to(dense.dtype)
    packed = Fragment24.from_dense(dense)
    x = torch.randn(4, 512, generator=generator).to(dense.dtype)
    results = []
    for seed in range(4):
        y = torch.empty(4, 128, dtype=dense.dtype)
        emulator.skinny(emulator.skinny_arguments(x, packed, y, (2, 2, 2, 7)), True, seed)
        results.append(y)
    assert all(torch.equal(results[0], other) for other in results[1:])
    # fp32 sums of 512 products, then one rounding to 8 bits.
    exact = x.double() @ dense.double().T
    torch.testing.assert_close(results[0].double(), exact, rtol=2**-8, atol=2**-8)
