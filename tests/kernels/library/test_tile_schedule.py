"""csrc/include/secateur/tile_schedule.h: every step of every tile once, slots for who shares."""

import ctypes
import itertools
from ctypes import byref, c_int32, c_int64
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Schedule(ctypes.Structure):
    """TileSchedule."""

    _fields_ = tuple(
        (name, c_int32)
        for name in ("row_blocks", "token_blocks", "steps", "blocks", "waves", "group")
    )


def fits(emulator: Any, *sizes: int) -> bool:
    return bool(emulator.functions.tile_schedule_fits(*map(c_int64, sizes)))


def place(emulator: Any, schedule: Schedule, tile: int) -> tuple[int, int]:
    found = (c_int32 * 2)()
    emulator.functions.tile_schedule_place(byref(schedule), tile, found)
    return found[0], found[1]


def segments(emulator: Any, schedule: Schedule, block: int) -> list[tuple[int, ...]]:
    """(tile, first, end, whole, slot, first contributor, last contributor) of a thread block."""
    most = schedule.row_blocks * schedule.token_blocks + 1
    numbers = (c_int64 * (7 * most))()
    count = emulator.functions.tile_schedule_segments(byref(schedule), block, numbers)
    return [tuple(numbers[7 * i : 7 * i + 7]) for i in range(count)]


def slots(emulator: Any, schedule: Schedule) -> int:
    emulator.functions.tile_schedule_slots.restype = c_int64
    return int(emulator.functions.tile_schedule_slots(byref(schedule)))


@given(
    row_blocks=st.integers(1, 20),
    token_blocks=st.integers(1, 20),
    group=st.integers(1, 25),
)
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tiles_cover_y_once(row_blocks: int, token_blocks: int, group: int, emulator: Any) -> None:
    schedule = Schedule(row_blocks, token_blocks, 1, 1, 0, group)
    places = [place(emulator, schedule, tile) for tile in range(row_blocks * token_blocks)]
    assert sorted(places) == list(itertools.product(range(row_blocks), range(token_blocks)))
    # A group's row blocks come before the next block of tokens, and groups follow each other.
    keys = [(row // group, tokens, row) for row, tokens in places]
    assert keys == sorted(keys)


@given(data=st.data())
@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_step_of_every_tile_once(data: st.DataObject, emulator: Any) -> None:
    row_blocks, token_blocks = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    steps = data.draw(st.integers(1, 20))
    tiles = row_blocks * token_blocks
    blocks = data.draw(st.integers(1, tiles * steps))
    waves = data.draw(st.integers(0, -(-tiles // blocks)))
    schedule = Schedule(
        row_blocks, token_blocks, steps, blocks, waves, data.draw(st.integers(1, 9))
    )
    assert fits(emulator, row_blocks, token_blocks, steps, blocks, waves, schedule.group)
    work = {block: segments(emulator, schedule, block) for block in range(blocks)}
    done = sorted((s[0], k) for block in work for s in work[block] for k in range(s[1], s[2]))
    assert done == list(itertools.product(range(tiles), range(steps)))
    check_waves(schedule, work)
    check_shares(schedule, work, emulator)


def check_waves(schedule: Schedule, work: dict[int, list[tuple[int, ...]]]) -> None:
    """Whole tiles in turn, then ranges whose lengths differ by one step at most."""
    tiles = schedule.row_blocks * schedule.token_blocks
    whole = min(schedule.waves * schedule.blocks, tiles)
    lengths = []
    for block, mine in work.items():
        first = [s for s in mine if s[0] < whole]
        assert [s[:4] for s in first] == [
            (tile, 0, schedule.steps, 1) for tile in range(block, whole, schedule.blocks)
        ]
        assert mine[: len(first)] == first
        lengths.append(sum(s[2] - s[1] for s in mine[len(first) :]))
    sharing = [length for length in lengths if length]
    assert lengths[: len(sharing)] == sharing
    if sharing:
        assert max(sharing) - min(sharing) <= 1
        assert min(sharing) == 1 or len(sharing) == schedule.blocks


def check_shares(schedule: Schedule, work: dict[int, list[tuple[int, ...]]], emulator: Any) -> None:
    """Contributors are exactly those that say so, and each has a slot of its own for the tile."""
    f = emulator.functions
    partial: dict[int, list[int]] = {}
    taken = []
    for block, mine in work.items():
        for tile, _, _, whole, slot, first, last in mine:
            if not whole:
                partial.setdefault(tile, []).append(block)
                taken.append(slot)
                assert first <= block <= last
                assert 0 <= f.tile_schedule_counter(byref(schedule), tile)
                counters = f.tile_schedule_counters(byref(schedule))
                assert f.tile_schedule_counter(byref(schedule), tile) < counters
    count = slots(emulator, schedule)
    split = schedule.waves * schedule.blocks
    assert len(set(taken)) == len(taken)
    assert all(0 <= slot < count for slot in taken)
    for tile, blocks in partial.items():
        ends = {s[5:] for block in blocks for s in work[block] if s[0] == tile}
        assert ends == {(min(blocks), max(blocks))}
        assert blocks == list(range(min(blocks), max(blocks) + 1))
        # Only the first contributor can have come from an earlier tile.
        starts = [next(s[0] for s in work[block] if s[0] >= split) for block in blocks[1:]]
        assert starts == [tile] * len(starts)
    assert count > 0 or not partial


def test_whole_tiles_need_no_workspace(emulator: Any) -> None:
    assert slots(emulator, Schedule(5, 7, 9, 35, 1, 4)) == 0
    assert slots(emulator, Schedule(5, 7, 9, 12, 3, 4)) == 0
    assert slots(emulator, Schedule(5, 7, 9, 7, 0, 4)) == 0
    # Whole parts of K: one slot a thread block. Ranges across tiles: two.
    assert slots(emulator, Schedule(5, 7, 9, 70, 0, 4)) == 70
    assert slots(emulator, Schedule(5, 7, 9, 71, 0, 4)) == 142
    # What one wave leaves, three tiles of nine steps, over 32 thread blocks: 27 get a step.
    assert slots(emulator, Schedule(5, 7, 9, 32, 1, 4)) == 27


def test_large_grids(emulator: Any) -> None:
    # 65,536 tokens of a weight [152064, 8192]: blocks * units is beyond 32 bits.
    schedule = Schedule(594, 512, 128, 264, 0, 8)
    ends = [segments(emulator, schedule, block)[-1] for block in (0, 131, 263)]
    assert [end[0] * 128 + end[2] for end in ends] == [
        (block + 1) * 594 * 512 * 128 // 264 for block in (0, 131, 263)
    ]


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 4, 0, 0, 1),
        (1, 1, 4, 5, 0, 1),
        (1, 1, 4, 1, 2, 1),
        (1, 1, 4, 1, -1, 1),
        (1, 1, 4, 1, 0, 0),
        (2**20, 2**12, 1, 132, 0, 8),
        (2**16, 2**8, 2**8, 132, 0, 8),
        (2**24, 2**40, 1, 132, 0, 8),
    ],
    ids=str,
)
def test_what_does_not_fit(sizes: tuple[int, ...], emulator: Any) -> None:
    assert not fits(emulator, *sizes)
