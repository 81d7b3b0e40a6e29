"""The skinny kernel with K split over clusters, on the emulated GPU."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.skinny_case import Case, run, weight_of
from thoroughness import examples

from secateur_kernels.layouts import Fragment24

CASES = {
    "two": Case(1, 64, 256, blocks=2, cluster=2),
    "four": Case(8, 128, 256, warps=4, blocks=4, cluster=4),
    "eight, a step each": Case(3, 128, 512, warps=4, blocks=8, cluster=8),
    "eight, more than there are tiles": Case(3, 64, 640, blocks=8, cluster=8),
    "an uneven share": Case(5, 192, 448, warps=6, blocks=4, cluster=4),
    "three row blocks": Case(9, 320, 320, warps=4, blocks=12, cluster=4),
    "two token tiles": Case(16, 128, 256, warps=4, blocks=4, cluster=4),
    "four token tiles": Case(30, 128, 256, warps=4, blocks=2, cluster=2),
    "eight token tiles": Case(64, 128, 512, warps=4, stages=3, blocks=8, cluster=8),
    "four row tiles": Case(9, 256, 256, warps=4, row_tiles=4, blocks=4, cluster=4),
    "four row tiles, eight token tiles": Case(
        50, 128, 256, warps=2, row_tiles=4, stages=3, blocks=2, cluster=2
    ),
    "more stages than steps": Case(2, 64, 128, stages=5, blocks=2, cluster=2),
    "panels missing": Case(4, 320, 256, warps=8, blocks=8, cluster=4),
    "odd N, bias, residual": Case(
        11, 37, 128, blocks=2, cluster=2, residual=True, bias=True, x_padding=3
    ),
    "gate and up apart": Case(
        6, 96, 256, warps=4, blocks=2, cluster=2, gate_up=True, bias=True, residual=True
    ),
    "K that is no multiple of 8": Case(8, 64, 140, blocks=2, cluster=2),
}


@pytest.mark.parametrize("dependent", [False, True], ids=["alone", "dependent"])
@pytest.mark.parametrize("name", CASES)
def test_integers_come_out_exactly(name: str, dependent: bool, emulator: Any) -> None:
    dtype = torch.bfloat16 if len(name) % 2 else torch.float16
    case = dataclasses.replace(CASES[name], dependent=dependent, dtype=dtype)
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


@settings(
    deadline=None,
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape_and_cluster(data: st.DataObject, emulator: Any) -> None:
    gate_up = data.draw(st.booleans(), "gate_up")
    rows = data.draw(st.integers(1, 12).map(lambda n: 16 * n) if gate_up else st.integers(1, 200))
    row_tiles = data.draw(st.sampled_from([2, 4]), "row tiles")
    warps = data.draw(st.sampled_from([2, 4, 6] if row_tiles == 2 else [1, 2, 3]), "warps")
    cluster = data.draw(st.sampled_from([2, 4, 8]), "cluster")
    row_blocks = -(-rows // (16 * warps * row_tiles))
    case = Case(
        tokens=data.draw(st.integers(1, 64), "tokens"),
        rows=rows,
        columns=4 * data.draw(st.integers(16 * cluster - 15, 16 * cluster + 60), "columns / 4"),
        warps=warps,
        row_tiles=row_tiles,
        stages=data.draw(st.integers(3, 5), "stages"),
        blocks=row_blocks * cluster,
        cluster=cluster,
        dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float16])),
        gate_up=gate_up,
        bias=data.draw(st.booleans(), "bias"),
        residual=data.draw(st.booleans(), "residual"),
        x_padding=data.draw(st.sampled_from([0, 8, 3]), "x padding"),
        dependent=data.draw(st.booleans(), "dependent"),
        lead=data.draw(st.integers(0, 6), "lead"),
        ahead=data.draw(st.integers(0, 5), "ahead"),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


def test_the_order_of_clusters_and_threads_does_not_change_a_bit(emulator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = weight_of(Case(rows=128, columns=512), generator)
    dense = dense * torch.rand(dense.shape, generator=generator).to(dense.dtype)
    packed = Fragment24.from_dense(dense)
    x = torch.randn(12, 512, generator=generator).to(dense.dtype)
    results = []
    for seed in range(4):
        y = torch.empty(12, 128, dtype=dense.dtype)
        arguments = emulator.skinny_arguments(x, packed, y, (2, 2, 2, 8), cluster=4)
        emulator.skinny(arguments, True, seed)
        results.append(y)
    assert all(torch.equal(results[0], other) for other in results[1:])
    exact = x.double() @ dense.double().T
    torch.testing.assert_close(results[0].double(), exact, rtol=2**-8, atol=2**-8)


def test_nothing_is_needed_beside_x_and_y(emulator: Any) -> None:
    packed = Fragment24.from_dense(torch.zeros(128, 512, dtype=torch.bfloat16))
    x, y = torch.zeros(1, 512, dtype=torch.bfloat16), torch.zeros(1, 128, dtype=torch.bfloat16)
    needs = emulator.needs(emulator.skinny_arguments(x, packed, y, (4, 2, 2, 8), cluster=8))
    assert (needs.workspace_bytes, needs.counter_count) == (0, 0)


@pytest.mark.parametrize(
    ("blocks", "cluster", "stages", "tokens"),
    [
        (3, 3, 4, 1),
        (16, 16, 4, 1),
        (2, 0, 4, 1),
        (2, -2, 4, 1),
        (4, 2, 4, 1),  # two clusters for one row block
        (8, 8, 4, 1),  # of four steps
    ],
)
def test_clusters_that_do_not_fit_are_refused(
    blocks: int, cluster: int, stages: int, tokens: int, emulator: Any
) -> None:
    packed = Fragment24.from_dense(torch.zeros(256, 256, dtype=torch.bfloat16))
    x = torch.zeros(tokens, 256, dtype=torch.bfloat16)
    y = torch.zeros(tokens, 256, dtype=torch.bfloat16)
    tiling = (8, 2, stages, blocks)
    arguments = emulator.skinny_arguments(x, packed, y, tiling, cluster=cluster)
    # More thread blocks than there are steps are refused as such.
    expected = "expected clusters of 1, 2, 4 or 8" if blocks <= 4 else "thread blocks"
    assert expected in emulator.check(arguments)


def test_clusters_are_refused_before_sm_90(emulator: Any) -> None:
    with pytest.raises(AssertionError, match=r"a GPU of compute capability 9\.0"):
        run(Case(columns=128, blocks=2, cluster=2, bulk=False), emulator)
