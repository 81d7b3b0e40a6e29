"""The tiles kernel's own source, thread by thread on an emulated GPU, against the dense product.

Values are small integers: every sum is exact in fp32 whatever its order, so that results must be
equal bit for bit.
"""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.tiles_case import Case, arguments_of, emulate, random_weight, run

from secateur_kernels.layouts import Fragment24

BF16, FP16 = torch.bfloat16, torch.float16
TILES = ((256, 128), (128, 128), (256, 64), (128, 64))

CASES = {
    "one tile, one step": Case(),
    "one step of many stages": Case(stages=5),
    "one tile, several steps": Case(columns=320, stages=3),
    "as many tiles as thread blocks": Case(130, 256, 128, blocks=6),
    "one thread block, all tiles": Case(130, 256, 192, waves=6),
    "two waves, the last one not full": Case(130, 256, 192, blocks=4, waves=2, stages=3),
    "a wave, the others split": Case(130, 256, 192, blocks=4, waves=1, stages=3),
    "fewer units than thread blocks are left": Case(130, 128, 64, blocks=2, waves=1),
    "split of K": Case(64, 128, 512, blocks=4, waves=0),
    "uneven split of K": Case(40, 128, 448, blocks=3, waves=0),
    "ranges across tiles": Case(100, 300, 192, blocks=7, waves=0, stages=3),
    "one unit a thread block": Case(64, 256, 192, blocks=6, waves=0),
    "panels missing": Case(64, 192, 128, blocks=2),
    "panels missing and K split": Case(64, 192, 256, blocks=3, waves=0),
    "tokens missing for some warps": Case(20, 128, 128, stages=3),
    "rows beyond N": Case(33, 50, 64),
    "odd N": Case(35, 37, 128, residual=True, bias=True),
    "odd N, K split": Case(35, 37, 256, residual=True, bias=True, blocks=3, waves=0),
    "K that is no multiple of 64": Case(40, 64, 100),
    "K that is no multiple of 8": Case(40, 64, 76, residual=True),
    "smallest": Case(1, 1, 4),
    "bias and residual": Case(70, 96, 64, bias=True, residual=True, blocks=2),
    "bias and residual, split": Case(50, 96, 256, blocks=3, waves=0, bias=True, residual=True),
    "residual off alignment": Case(50, 96, 64, residual=True, residual_padding=3),
    "gate and up apart": Case(50, 96, 64, gate_up=True, bias=True, residual=True),
    "behind another kernel": Case(70, 192, 256, stages=3, blocks=5, waves=0, dependent=True),
    "behind another kernel, nothing to do": Case(dependent=True, blocks=1, waves=1),
    "groups of one row block": Case(130, 400, 64, blocks=5, waves=3, group=1),
}
LARGE = {
    "256 x 128": Case(130, 300, 192, (256, 128), stages=3, blocks=4),
    "256 x 128, K split": Case(100, 200, 384, (256, 128), stages=2, blocks=3, waves=0),
    "128 x 128": Case(130, 150, 192, (128, 128), stages=4, blocks=3, waves=2),
    "128 x 128, K split": Case(130, 100, 256, (128, 128), stages=3, blocks=3, waves=0),
    "256 x 64": Case(60, 300, 192, (256, 64), stages=3, blocks=2),
    "256 x 64, K split": Case(65, 200, 256, (256, 64), stages=3, blocks=5, waves=0),
}


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_integers_come_out_exactly(name: str, emulator: Any) -> None:
    dtype = BF16 if len(name) % 2 else FP16
    case = CASES.get(name) or LARGE[name]
    y, expected = run(dataclasses.replace(case, dtype=dtype), emulator)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("waves", [0, 1])
def test_silu_and_multiply(dtype: torch.dtype, waves: int, emulator: Any) -> None:
    case = Case(70, 96, 192, blocks=2, waves=waves, dtype=dtype, gate_up=True, silu=True)
    y, expected = run(dataclasses.replace(case, bias=True, residual=True), emulator)
    # The sums are exact; exp in fp32 may move a value across one rounding to 8 or 11 bits.
    ulp = 2.0 ** (-8 if dtype == BF16 else -11)
    torch.testing.assert_close(y.float(), expected.float(), rtol=2 * ulp, atol=ulp * 2**-4)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_tile_and_schedule(data: st.DataObject, emulator: Any) -> None:
    gate_up = data.draw(st.booleans(), "gate_up")
    rows = data.draw(st.integers(1, 20).map(lambda n: 16 * n) if gate_up else st.integers(1, 300))
    columns = 4 * data.draw(st.integers(1, 60), "columns / 4")
    tokens = data.draw(st.integers(1, 150), "tokens")
    # The larger ones take longer.
    tile = data.draw(st.sampled_from([*TILES, (128, 64), (128, 64)]), "tile")
    tiles = -(-rows // tile[0]) * -(-tokens // tile[1])
    blocks = data.draw(st.integers(1, min(6, tiles * -(-columns // 64))), "blocks")
    case = Case(
        tokens=tokens,
        rows=rows,
        columns=columns,
        tile=tile,
        stages=data.draw(st.integers(2, 5), "stages"),
        blocks=blocks,
        waves=data.draw(st.integers(0, -(-tiles // blocks)), "waves"),
        group=data.draw(st.integers(1, 3), "group"),
        dtype=data.draw(st.sampled_from([BF16, FP16])),
        gate_up=gate_up,
        bias=data.draw(st.booleans(), "bias"),
        residual=data.draw(st.booleans(), "residual"),
        residual_padding=data.draw(st.sampled_from([0, 8, 3]), "residual padding"),
        dependent=data.draw(st.booleans(), "dependent"),
        seed=data.draw(st.integers(0, 2**20), "seed"),
    )
    y, expected = run(case, emulator)
    assert torch.equal(y, expected)


def test_nan_at_a_dropped_column_does_not_reach_the_row(emulator: Any) -> None:
    dense = torch.zeros(64, 64, dtype=BF16)
    dense[:, 0::4], dense[:, 1::4] = 1.0, 2.0
    dense[7, 0::4], dense[7, 3::4] = 0.0, 1.0
    packed = Fragment24.from_dense(dense)
    x = torch.ones(40, 64, dtype=BF16)
    x[33, 3::4] = torch.nan
    y = torch.empty(40, 64, dtype=BF16)
    emulate(arguments_of(Case(), x, packed, y), emulator, 0)
    assert y[33, 7].isnan()
    assert int(y.isnan().sum()) == 1
    assert (y[:, torch.arange(64) != 7] == 48.0).all()


@pytest.mark.parametrize(("blocks", "waves"), [(7, 0), (2, 1)])
def test_the_order_of_thread_blocks_does_not_change_a_bit(
    blocks: int, waves: int, emulator: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = random_weight(Case(rows=300, columns=256), generator)
    dense = dense * torch.rand(dense.shape, generator=generator).to(dense.dtype)
    packed = Fragment24.from_dense(dense)
    x = torch.randn(40, 256, generator=generator).to(dense.dtype)
    results = []
    for seed in range(4):
        y = torch.empty(40, 300, dtype=dense.dtype)
        case = Case(blocks=blocks, waves=waves, stages=3)
        emulate(arguments_of(case, x, packed, y), emulator, seed)
        results.append(y)
    assert all(torch.equal(results[0], other) for other in results[1:])
    # fp32 sums of 256 products, then one rounding to 8 bits.
    exact = x.double() @ dense.double().T
    torch.testing.assert_close(results[0].double(), exact, rtol=2**-8, atol=2**-8)
