"""The index functions of csrc/include, one by one, against the layout's specification."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur_kernels.layouts import Fragment24
from secateur_kernels.layouts.fragment24 import SUB_TILE_BYTES, UNIT_BYTES


def numbered_weight() -> torch.Tensor:
    """fp16 [64, 64] that keeps columns 0 and 1 of every four; a value says its place."""
    bits = torch.zeros(64, 64, dtype=torch.int16)
    kept = torch.arange(64 * 32, dtype=torch.int16).view(64, 16, 2) + 1
    bits.view(64, 16, 4)[:, :, :2] = kept
    return bits.view(torch.float16)


def test_offsets_name_the_bytes_that_packing_wrote(emulator: Any) -> None:
    f = emulator.functions
    weight = numbered_weight()
    data = Fragment24.from_dense(weight).data.flatten()
    for tile, fragment, lane in itertools.product(range(4), range(2), range(32)):
        start = tile * SUB_TILE_BYTES + f.index_value_offset(fragment, lane)
        values = data[start : start + 16].view(torch.float16)
        for row_half, column_half in itertools.product(range(2), range(2)):
            register = f.index_value_register(row_half, column_half)
            column = f.index_group_column(lane, fragment, column_half)
            row = 16 * tile + lane // 4 + 8 * row_half
            expected = weight[row, column : column + 2]
            assert torch.equal(values[2 * register : 2 * register + 2], expected)


def test_metadata_words_and_nibbles(emulator: Any) -> None:
    f = emulator.functions
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(64, 16, 4, generator=generator).argsort(2)
    weight = torch.ones(64, 16, 4).masked_fill(order >= 2, 0.0).view(64, 64).half()
    data = Fragment24.from_dense(weight).data.flatten()
    for tile, fragment, lane, half in itertools.product(range(4), range(2), range(32), range(2)):
        source = f.index_metadata_lane(lane, fragment, half)
        start = tile * SUB_TILE_BYTES + f.index_metadata_offset(source)
        word = int(data[start : start + 4].view(torch.int32)) & 0xFFFFFFFF
        column = f.index_group_column(lane, fragment, half)
        for row_half in range(2):
            nibble = f.index_nibble(word, lane, row_half)
            row = 16 * tile + lane // 4 + 8 * row_half
            kept = weight[row, column : column + 4].nonzero().flatten().tolist()
            assert [nibble & 3, nibble >> 2] == kept


def test_units_follow_each_other_along_k(emulator: Any) -> None:
    f = emulator.functions
    weight = torch.zeros(128, 192, dtype=torch.float16)
    weight[64, 128] = 1.0
    data = Fragment24.from_dense(weight).data.flatten()
    start = f.index_unit_offset(1, 2, 3)
    assert data[start : start + UNIT_BYTES].view(torch.float16)[0] == 1.0
    # 64-bit: the last unit of a weight of 3.1e9 bytes.
    assert f.index_unit_offset(2400, 130, 280) == (2400 * 280 + 130) * 4608 > 2**31


@pytest.mark.parametrize("nibble", [0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110])
def test_expanding_a_group(nibble: int, emulator: Any) -> None:
    expanded = emulator.functions.index_expand_group(0xBEEF_1234, nibble)
    columns = [(expanded >> (16 * i)) & 0xFFFF for i in range(4)]
    expected = [0] * 4
    expected[nibble & 3], expected[nibble >> 2] = 0x1234, 0xBEEF
    assert columns == expected


def test_logical_rows(emulator: Any) -> None:
    f = emulator.functions
    assert [f.index_logical_row(3, row, 96, 0) for row in range(16)] == list(range(48, 64))
    gate_then_up = [*range(24, 32), *range(48 + 24, 48 + 32)]
    assert [f.index_logical_row(3, row, 96, 1) for row in range(16)] == gate_then_up


def test_the_tile_of_x_is_a_permutation_without_bank_conflicts(emulator: Any) -> None:
    f = emulator.functions
    offsets = [f.index_chunk_offset(token, chunk) for token in range(64) for chunk in range(8)]
    assert sorted(offsets) == list(range(0, 64 * 128, 16))
    for token_tile, fragment, matrix in itertools.product(range(8), range(2), range(4)):
        rows = [f.index_operand_offset(8 * matrix + row, token_tile, fragment) for row in range(8)]
        # Eight tokens of one chunk: the right ones, and each in its own 16 bytes of the banks.
        expected = [
            f.index_chunk_offset(8 * token_tile + row, 4 * fragment + matrix) for row in range(8)
        ]
        assert rows == expected
        assert len({offset % 128 for offset in rows}) == 8


def test_bytes_of_x_that_exist(emulator: Any) -> None:
    f = emulator.functions
    for column, columns in itertools.product(range(0, 136, 8), range(0, 140)):
        expected = 2 * max(0, min(8, columns - column))
        assert f.index_valid_bytes(column, columns) == expected


def test_accumulators_cover_the_tile_once(emulator: Any) -> None:
    f = emulator.functions
    places = {
        (f.index_accumulator_row(lane, item), f.index_accumulator_token(lane, item))
        for lane in range(32)
        for item in range(4)
    }
    assert places == set(itertools.product(range(16), range(8)))


@pytest.mark.parametrize("gated", [False, True])
def test_results_are_staged_without_bank_conflicts(gated: bool, emulator: Any) -> None:
    f = emulator.functions
    # Sixteen bytes a lane are served for eight lanes at a time, matrices one after the other.
    for offset in (f.index_staging_row_offset, f.index_staging_matrix_row_offset):
        offsets = [offset(gated, lane) for lane in range(32)]
        assert sorted(offsets) == list(range(0, 512, 16))
        for first in range(0, 32, 8):
            assert len({offset % 128 for offset in offsets[first : first + 8]}) == 8


@pytest.mark.parametrize("gated", [False, True])
def test_results_are_taken_out_where_they_were_put(gated: bool, emulator: Any) -> None:
    f = emulator.functions
    taken = {
        f.index_staging_row_offset(gated, lane): (
            f.index_staging_token(gated, lane),
            f.index_staging_half(gated, lane),
        )
        for lane in range(32)
    }
    for lane in range(32):
        matrix, row = divmod(lane, 8)
        token, half = (8 * matrix + row, 0) if gated else (matrix // 2 * 8 + row, matrix % 2)
        assert taken[f.index_staging_matrix_row_offset(gated, lane)] == (token, half)


@pytest.mark.parametrize("rounds", range(1, 17))
def test_rounds_are_staged_in_equal_parts(rounds: int, emulator: Any) -> None:
    together = emulator.functions.index_staging_rounds_together(rounds)
    assert 1 <= together <= 4
    assert rounds % together == 0
    assert all(rounds % more for more in range(together + 1, 5))


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row_blocks=st.integers(1, 40), steps=st.integers(1, 40), data=st.data())
def test_ranges_cover_all_units_once_and_evenly(
    row_blocks: int, steps: int, data: st.DataObject, emulator: Any
) -> None:
    f = emulator.functions
    units = row_blocks * steps
    blocks = data.draw(st.integers(1, units))
    assert f.schedule_fits(row_blocks, steps, blocks)
    firsts = [f.schedule_first_unit(row_blocks, steps, blocks, b) for b in range(blocks + 1)]
    assert (firsts[0], firsts[-1]) == (0, units)
    lengths = {after - before for before, after in itertools.pairwise(firsts)}
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1
    owner = [b for b in range(blocks) for _ in range(firsts[b], firsts[b + 1])]
    sizes = (row_blocks, steps, blocks)
    assert [f.schedule_block_of(*sizes, unit) for unit in range(units)] == owner
    # Whoever shares a row block has a slot of its own for it.
    shared = {}
    for row_block in range(row_blocks):
        contributors = set(owner[row_block * steps : (row_block + 1) * steps])
        if len(contributors) > 1:
            shared.update(
                {(b, row_block): f.schedule_slot(*sizes, b, row_block) for b in contributors}
            )
    assert len(set(shared.values())) == len(shared)
    assert all(0 <= slot < f.schedule_slots(*sizes) for slot in shared.values())


def test_schedules_beyond_32_bits_are_refused(emulator: Any) -> None:
    f = emulator.functions
    assert f.schedule_fits(594, 448, 264)
    assert not f.schedule_fits(594, 448, 0)
    assert not f.schedule_fits(594, 448, 594 * 448 + 1)
    assert not f.schedule_fits(2**20, 2**12, 132)
    assert not f.schedule_fits(2**16, 2**9, 132)
