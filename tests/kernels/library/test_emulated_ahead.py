"""What the kernels ask for into the L2 cache: all that the first ring has no room for, once.

The emulated GPU itself refuses what may not be read yet, and what is asked for more often than it
is copied afterwards.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from kernels.library import low_rank_case, skinny_case, wide_case

UNIT_BYTES = 4608


@pytest.fixture
def prefetched(emulator: Any) -> Callable[[], int]:
    """Bytes since the last question."""
    ask: Callable[[], int] = emulator.functions.emulation_prefetched_bytes
    ask.restype = ctypes.c_int64  # type: ignore[attr-defined]
    ask()
    return ask


@pytest.mark.parametrize("dependent", [False, True], ids=["alone", "dependent"])
@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_skinny(ahead: int, dependent: bool, emulator: Any, prefetched: Callable[[], int]) -> None:
    """Two panels of ten steps each, in two thread blocks of two stages."""
    case = skinny_case.Case(
        3, 128, 640, blocks=2, ahead=ahead, dependent=dependent, warps=2, stages=2
    )
    skinny_case.run(case, emulator)
    assert prefetched() == (2 * (10 - 2) * UNIT_BYTES if ahead else 0)
    skinny_case.run(skinny_case.Case(3, 128, 640, ahead=ahead, bulk=False), emulator)
    assert prefetched() == 0  # there are no bulk copies before 9.0


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize("tokens", [1, 2], ids=["alone", "weights shared"])
def test_wide(tokens: int, ahead: int, emulator: Any, prefetched: Callable[[], int]) -> None:
    """Two panels and ten steps, split between two clusters of three stages."""
    tiling = wide_case.Tiling(cluster_tokens=tokens, blocks=2 * tokens, ahead=ahead)
    case = wide_case.Case(32 * tokens, 128, 640, tiling, dependent=True)
    wide_case.run(case, emulator)
    assert prefetched() == (2 * 2 * (5 - 3) * UNIT_BYTES if ahead else 0)


def test_wide_asks_within_a_tile(emulator: Any, prefetched: Callable[[], int]) -> None:
    """The first stages of the second tile are asked for by the ring alone, and the next two."""
    tiling = wide_case.Tiling(blocks=1, waves=2, ahead=2)
    wide_case.run(wide_case.Case(20, 256, 640, tiling), emulator)
    assert prefetched() == 2 * (7 + 8) * UNIT_BYTES


@pytest.mark.parametrize("ahead", [(0, 0), (1, 0), (0, 1), (2, 90)], ids=str)
def test_low_rank(ahead: tuple[int, int], emulator: Any, prefetched: Callable[[], int]) -> None:
    """Of down [1024, 1280] 16 row blocks of five stages, of which two are in the ring; of up
    [64, 1024] two row blocks of four stages.
    """
    case = low_rank_case.Case(
        4, (64,), 1280, 1024, (8, 4, 2, 1), (8, 2, 2, 1), boxes=(1, 1), ahead=ahead, dependent=True
    )
    low_rank_case.run(case, emulator)
    down = 16 * (5 - 2) * 256 * 64 * 2
    up = (2 * 4 - 2) * 256 * 32 * 2
    assert prefetched() == (down if ahead[0] else 0) + (up if ahead[1] else 0)
