"""The wide kernel's own source, thread by thread on an emulated GPU, and the dense product."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.wide_case import (
    Case,
    Tiling,
    aligned_rows,
    arguments_of,
    emulate,
    needs_of,
    run,
    weight_of,
)
from thoroughness import examples

from secateur_kernels.layouts import Fragment24

# Warpgroups, panels, tokens of a tile.
TILES = [(2, 1, 32), (2, 2, 32), (2, 1, 64), (2, 2, 64), (2, 1, 128), (2, 2, 128)]
TILES += [(3, 1, 192), (2, 1, 256)]

CASES = {
    "one token": Case(1, 64, 64),
    "a full tile": Case(32, 128, 256),
    "more stages than steps": Case(32, 128, 128, Tiling(stages=5)),
    "fewer stages than steps": Case(17, 128, 448, Tiling(stages=2)),
    "two panels a warpgroup": Case(20, 256, 192, Tiling(panels=2)),
    "a warpgroup without a panel": Case(9, 64, 192, Tiling(panels=2)),
    "a panel that does not exist": Case(9, 192, 192, Tiling(panels=2)),
    "waves of whole tiles": Case(70, 384, 128, Tiling(blocks=2, waves=5)),
    "a wave, then ranges": Case(70, 384, 192, Tiling(blocks=4, waves=1)),
    "split of K": Case(32, 128, 512, Tiling(blocks=4)),
    "uneven split of K": Case(24, 128, 448, Tiling(blocks=3)),
    "ranges across tiles": Case(40, 300, 192, Tiling(blocks=5)),
    "a step a thread block": Case(16, 128, 256, Tiling(blocks=4, stages=2)),
    "tiles in narrow groups": Case(100, 500, 64, Tiling(blocks=3, group=1)),
    "x shared by two": Case(32, 256, 256, Tiling(cluster_rows=2, blocks=2)),
    "x shared by four": Case(32, 512, 192, Tiling(cluster_rows=4, blocks=4)),
    "x shared, one beyond the rows": Case(32, 128, 192, Tiling(cluster_rows=2, blocks=2)),
    "weights shared by two": Case(64, 128, 256, Tiling(cluster_tokens=2, blocks=2)),
    "weights shared by four": Case(97, 128, 192, Tiling(cluster_tokens=4, blocks=4)),
    "weights shared, one beyond the tokens": Case(20, 128, 192, Tiling(cluster_tokens=2, blocks=2)),
    "both shared": Case(64, 256, 192, Tiling(cluster_rows=2, cluster_tokens=2, blocks=4)),
    "shared and split": Case(40, 300, 320, Tiling(cluster_rows=2, blocks=6)),
    "both shared and split": Case(
        100, 300, 320, Tiling(cluster_rows=2, cluster_tokens=2, blocks=12)
    ),
    "shared in waves, then split": Case(
        70, 520, 192, Tiling(cluster_rows=2, blocks=4, waves=1, stages=2)
    ),
    "steps split by two": Case(32, 128, 512, Tiling(cluster_steps=2, blocks=2, waves=1)),
    "steps split by four, unevenly": Case(
        24, 128, 448, Tiling(cluster_steps=4, blocks=4, waves=1), bias=True, residual=True
    ),
    "steps split by eight": Case(40, 100, 576, Tiling(cluster_steps=8, blocks=16, waves=1)),
    "steps split, tiles in turn": Case(
        70, 300, 320, Tiling(cluster_steps=2, blocks=4, waves=5, stages=2)
    ),
    "steps split, a warpgroup without a panel": Case(
        20, 64, 256, Tiling(panels=2, cluster_steps=2, blocks=2, waves=1), residual=True
    ),
    "steps split, x shared": Case(
        40, 300, 320, Tiling(cluster_rows=2, cluster_steps=2, blocks=8, waves=2, stages=3)
    ),
    "steps split, weights shared": Case(
        70, 128, 448, Tiling(cluster_tokens=2, cluster_steps=4, blocks=8, waves=2), residual=True
    ),
    "steps split, both shared": Case(
        90, 256, 256, Tiling(cluster_rows=2, cluster_tokens=2, cluster_steps=2, blocks=8, waves=2)
    ),
    "steps split, x shared by one beyond the rows": Case(
        20, 128, 320, Tiling(cluster_rows=2, cluster_steps=2, blocks=4, waves=1)
    ),
    "weights asked for ahead": Case(32, 256, 640, Tiling(blocks=3, ahead=2)),
    "and farther than there are, in clusters": Case(
        64, 256, 640, Tiling(cluster_rows=2, cluster_tokens=2, blocks=4, ahead=99)
    ),
    "the next kernel let start late": Case(
        32, 256, 448, Tiling(cluster_rows=2, blocks=4, late=True)
    ),
    "rows beyond N": Case(30, 50, 64),
    "odd N": Case(33, 37, 128, residual=True, bias=True),
    "N of four": Case(33, 68, 128, residual=True, bias=True),
    "K that is no multiple of 64": Case(32, 64, 104),
    "K that is no multiple of 8": Case(32, 64, 76, residual=True),
    "smallest": Case(1, 1, 4),
    "bias and residual": Case(50, 160, 64, bias=True, residual=True),
    "bias at an odd place": Case(50, 160, 64, bias=True, bias_aligned=False),
    "bias at an odd place, gate and up": Case(
        30, 96, 64, gate_up=True, bias=True, bias_aligned=False
    ),
    "bias and residual, split": Case(50, 160, 256, Tiling(blocks=5), bias=True, residual=True),
    "y at an odd place": Case(50, 160, 64, y_aligned=False, bias=True, residual=True),
    "gate and up apart": Case(30, 96, 64, gate_up=True, bias=True, residual=True),
    "rows of x apart": Case(32, 64, 128, x_padding=24),
}


@pytest.mark.parametrize("name", CASES)
def test_integers_come_out_exactly(name: str, emulator: Any) -> None:
    dtype = torch.bfloat16 if len(name) % 2 else torch.float16
    case = dataclasses.replace(CASES[name], dtype=dtype, dependent=len(name) % 3 == 0)
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile(tile: tuple[int, int, int], emulator: Any) -> None:
    warpgroups, panels, tokens = tile
    rows = 64 * warpgroups * panels
    for dtype in (torch.bfloat16, torch.float16):
        whole = Tiling(warpgroups, panels, tokens, stages=2)
        y, expected = run(Case(tokens, rows, 192, whole, dtype=dtype, bias=True), emulator)
        assert torch.equal(y, expected)
    split = dataclasses.replace(whole, cluster_rows=2, blocks=4)
    for more in (70, 72):  # rows of y that do not start at multiples of 16 bytes, and that do
        case = Case(tokens + 3, rows + more, 128, split, residual=True, dependent=True)
        y, expected = run(case, emulator)
        assert torch.equal(y, expected)


def silu_and_multiply(tokens: int, rows: int, tiling: Tiling, dtype: torch.dtype) -> Case:
    case = Case(tokens, rows, 192, tiling, dtype, gate_up=True, silu=True)
    return dataclasses.replace(case, bias=True, residual=True)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_silu_and_multiply(dtype: torch.dtype, blocks: int, aligned: bool, emulator: Any) -> None:
    case = silu_and_multiply(40, 224, Tiling(blocks=blocks), dtype)
    require_near(dataclasses.replace(case, y_aligned=aligned), emulator)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_silu_and_multiply_with_every_tile(tile: tuple[int, int, int], emulator: Any) -> None:
    warpgroups, panels, tokens = tile
    tiling = Tiling(warpgroups, panels, tokens, stages=2, blocks=2)
    rows = 64 * warpgroups * panels + 32
    require_near(silu_and_multiply(tokens + 3, rows, tiling, torch.bfloat16), emulator)


def require_near(case: Case, emulator: Any) -> None:
    y, expected = run(case, emulator)
    dtype = case.dtype
    # The sums are exact; exp in fp32 may move a value across one rounding to 8 or 11 bits.
    ulp = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    torch.testing.assert_close(y.float(), expected.float(), rtol=2 * ulp, atol=ulp * 2**-4)


@settings(
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape_tiling_and_schedule(data: st.DataObject, emulator: Any) -> None:
    gate_up = data.draw(st.booleans(), "gate_up")
    rows = data.draw(st.integers(1, 25).map(lambda n: 16 * n) if gate_up else st.integers(1, 400))
    warpgroups, panels, tile_tokens = data.draw(st.sampled_from(TILES[:5]), "tile")
    tokens = data.draw(st.integers(1, 3 * tile_tokens), "tokens")
    columns = 4 * data.draw(st.integers(1, 80), "columns / 4")
    clusters = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]
    cluster_rows, cluster_tokens = data.draw(st.sampled_from(clusters), "cluster")
    tiling = Tiling(
        warpgroups,
        panels,
        tile_tokens,
        data.draw(st.integers(2, 4), "stages"),
        cluster_rows,
        cluster_tokens,
    )
    groups = tiling.groups(tokens, rows)
    count = data.draw(st.integers(1, min(8, groups * -(-columns // 64))), "clusters")
    tiling = dataclasses.replace(
        tiling,
        blocks=count * tiling.cluster,
        waves=data.draw(st.integers(0, -(-groups // count)), "waves"),
        group=data.draw(st.integers(1, 3), "group"),
        ahead=data.draw(st.integers(0, 4), "ahead"),
    )
    case = Case(
        tokens,
        rows,
        columns,
        tiling,
        dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float16])),
        gate_up=gate_up,
        bias=data.draw(st.booleans(), "bias"),
        bias_aligned=data.draw(st.booleans(), "bias aligned"),
        residual=data.draw(st.booleans(), "residual"),
        x_padding=data.draw(st.sampled_from([0, 8]), "x padding"),
        dependent=data.draw(st.booleans(), "dependent"),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


def test_nan_at_a_dropped_column_does_not_reach_the_row(emulator: Any) -> None:
    dense = torch.zeros(64, 64, dtype=torch.bfloat16)
    dense[:, 0::4], dense[:, 1::4] = 1.0, 2.0
    dense[7, 0::4], dense[7, 3::4] = 0.0, 1.0
    packed = Fragment24.from_dense(dense)
    x = aligned_rows(torch.ones(1, 64, dtype=torch.bfloat16), 0)
    x[0, 3::4] = torch.nan
    y = torch.empty(1, 64, dtype=torch.bfloat16)
    emulate(arguments_of(x, packed, y, Tiling()), 0, emulator)
    assert y[0, 7].isnan()
    assert (y[0, torch.arange(64) != 7] == 48.0).all()


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_with_its_steps_split(data: st.DataObject, emulator: Any) -> None:
    warpgroups, panels, tile_tokens = data.draw(st.sampled_from(TILES[:5]), "tile")
    steps = data.draw(st.sampled_from([2, 2, 4]), "steps")
    sharing = st.sampled_from([(1, 1), (2, 1), (1, 2)] + ([(2, 2)] if steps == 2 else []))
    along_rows, along_tokens = data.draw(sharing, "cluster")
    size = along_rows * along_tokens * steps
    tiling = Tiling(
        warpgroups,
        panels,
        tile_tokens,
        cluster_rows=along_rows,
        cluster_tokens=along_tokens,
        cluster_steps=steps,
    )
    gate_up = data.draw(st.booleans(), "gate_up")
    rows = data.draw(st.integers(1, 18).map(lambda n: 16 * n) if gate_up else st.integers(1, 280))
    tokens = data.draw(st.integers(1, tile_tokens + 20), "tokens")
    tiles = tiling.groups(tokens, rows)
    count = data.draw(st.integers(1, tiles), "clusters")
    tiling = dataclasses.replace(
        tiling,
        blocks=count * size,
        waves=-(-tiles // count),
        stages=data.draw(st.integers(3, 4), "stages"),
    )
    case = Case(
        tokens,
        rows,
        4 * data.draw(st.integers(16 * steps - 15, 16 * steps + 60), "columns / 4"),
        tiling,
        dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float16])),
        gate_up=gate_up,
        bias=data.draw(st.booleans(), "bias"),
        residual=data.draw(st.booleans(), "residual"),
        dependent=data.draw(st.booleans(), "dependent"),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


def test_steps_split_by_threads_in_any_order_change_no_bit(emulator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = weight_of(Case(0, 128, 384), generator)
    dense = dense * torch.rand(dense.shape, generator=generator).to(dense.dtype)
    packed = Fragment24.from_dense(dense)
    x = aligned_rows(torch.randn(33, 384, generator=generator).to(dense.dtype), 0)
    tiling = Tiling(cluster_steps=4, blocks=4, waves=2)
    assert needs_of(arguments_of(x, packed, x, tiling), emulator).workspace_bytes == 0
    results = []
    for seed in range(3):
        y = torch.empty(33, 128, dtype=dense.dtype)
        emulate(arguments_of(x, packed, y, tiling), seed, emulator)
        results.append(y)
    assert all(torch.equal(results[0], other) for other in results[1:])
    exact = x.double() @ dense.double().T
    torch.testing.assert_close(results[0].double(), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("cluster_rows", [1, 2])
def test_the_order_of_clusters_does_not_change_a_bit(cluster_rows: int, emulator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = weight_of(Case(0, 256, 384), generator)
    dense = dense * torch.rand(dense.shape, generator=generator).to(dense.dtype)
    packed = Fragment24.from_dense(dense)
    x = aligned_rows(torch.randn(33, 384, generator=generator).to(dense.dtype), 0)
    tiling = Tiling(cluster_rows=cluster_rows, blocks=7 * cluster_rows, stages=2)
    results = []
    for seed in range(4):
        y = torch.empty(33, 256, dtype=dense.dtype)
        emulate(arguments_of(x, packed, y, tiling), seed, emulator)
        results.append(y)
    assert all(torch.equal(results[0], other) for other in results[1:])
    # fp32 sums of 384 products, then one rounding to 8 bits.
    exact = x.double() @ dense.double().T
    torch.testing.assert_close(results[0].double(), exact, rtol=2**-8, atol=2**-8)


def test_shared_memory_of_the_largest_rings_fits(emulator: Any) -> None:
    most = {(2, 1, 256): 5, (2, 2, 128): 6, (3, 1, 192): 4, (2, 1, 128): 7, (2, 2, 64): 7}
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    packed = Fragment24.from_dense(torch.zeros(64, 64, dtype=torch.bfloat16))
    for tile, stages in most.items():
        needs = needs_of(arguments_of(x, packed, x, Tiling(*tile, stages=stages)), emulator)
        assert needs.shared_bytes <= 227 * 1024
