"""The points that thread blocks of two kernels mark, on an emulated GPU."""

import ctypes
import shutil
import subprocess
from ctypes import c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.timeline import POINTS
from kernels.library import skinny_case, wide_case
from kernels.library.build_emulation import CSRC, HERE, OPTIONS
from kernels.library.conftest import Emulator
from kernels.library.skinny_case import Case

ROOT = Path(__file__).parents[2]
OWN = Path(__file__).parent / "emulation"
SHARED_BYTES = 227 * 1024  # of a thread block on sm_90
MARKS_SHARED_BYTES = 128
# Whoever passes the second has passed the first, whatever the order of threads.
ORDER = (
    *(("started", "weights_asked"), ("started", "predecessor_ended")),
    *(("predecessor_ended", "x_asked"), ("predecessor_ended", "first_full")),
    *(("x_asked", "last_asked"), ("first_full", "last_full"), ("last_full", "handed_over")),
    *(("handed_over", "summed"), ("summed", "left"), ("last_asked", "left")),
    *(("last_full", "left"), ("successor_let", "last_asked")),
)


class MarkedEmulator(Emulator):
    """The kernels compiled with marks."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.emulation_message.restype = ctypes.c_char_p
        self.functions.secateur_error_text.restype = ctypes.c_char_p
        self.functions.emulate_sparse24_skinny.argtypes = [c_void_p, c_int, c_uint64]
        self.functions.marks_passed.restype = ctypes.POINTER(c_int64)
        self.functions.timeline_skinny_bytes.restype = c_int64
        self.functions.timeline_wide_bytes.restype = c_int64

    def marks_of(self, case: skinny_case.Case | wide_case.Case) -> list[dict[str, int]]:
        """Of each thread block, the points that it passes and when."""
        self.functions.marks_clear()
        if isinstance(case, skinny_case.Case):
            y, expected = skinny_case.run(case, self)
            count = case.blocks
        else:
            y, expected = wide_case.run(case, self)
            count = case.tiling.blocks
        assert torch.equal(y, expected)
        marks = self.functions.marks_passed()
        blocks = [marks[i * len(POINTS) : (i + 1) * len(POINTS)] for i in range(count)]
        pairs = [zip(POINTS, block, strict=True) for block in blocks]
        return [{name: when for name, when in block if when > 0} for block in pairs]


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> MarkedEmulator:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("marks") / "libmarks.so"
    sources = (
        *(OWN / f"{name}.cpp" for name in ("marks", "marked_skinny", "marked_wide")),
        *(HERE / "messages.cpp", CSRC / "library/error_text.cpp"),
        *(CSRC / f"sparse24_{kernel}/arguments.cpp" for kernel in ("skinny", "wide")),
    )
    command: list[Any] = [compiler, *OPTIONS, f"-I{ROOT / 'bench/microbenchmarks'}"]
    command += [*sources, "-shared", "-o", library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return MarkedEmulator(library)


def misordered(block: dict[str, int]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in ORDER if a in block and b in block and block[a] >= block[b]]


@pytest.mark.parametrize("lead", [0, 1, 9])
@pytest.mark.parametrize("stages", [2, 5])
def test_every_block_of_a_cluster_passes_every_point_in_order(
    stages: int, lead: int, marked: MarkedEmulator
) -> None:
    case = Case(9, 256, 704, warps=4, stages=stages, blocks=8, cluster=4, dependent=True)
    for seed in range(5):
        fields = vars(case) | {"lead": lead, "seed": seed}
        for block in marked.marks_of(Case(**fields)):
            assert set(block) == set(POINTS)
            assert misordered(block) == []
            assert block["weights_asked"] < block["predecessor_ended"]


def test_only_the_last_to_draw_a_ticket_adds(marked: MarkedEmulator) -> None:
    """Three blocks over two row blocks: ranges that cross from one into the next."""
    for seed in range(5):
        case = Case(3, 256, 384, warps=4, blocks=3, dependent=True, seed=seed)
        blocks = marked.marks_of(case)
        assert all(set(POINTS) - set(block) <= {"summed"} for block in blocks)
        assert any("summed" in block for block in blocks)
        # The last segment of a block need not be the one that it adds up.
        wrong = [pair for block in blocks for pair in misordered(block)]
        assert [pair for pair in wrong if "summed" not in pair] == []


def test_whole_row_blocks_share_no_sums(marked: MarkedEmulator) -> None:
    blocks = marked.marks_of(Case(1, 256, 256, warps=4, blocks=2, lead=2))
    for block in blocks:
        assert set(POINTS) - set(block) == {"handed_over", "summed"}
        assert misordered(block) == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("panels", [1, 2])
def test_so_does_every_block_of_the_wide_kernel(
    panels: int, late: bool, marked: MarkedEmulator
) -> None:
    tiling = wide_case.Tiling(panels=panels, blocks=2, late=late)
    for seed in range(3):
        case = wide_case.Case(20, 256 * panels, 640, tiling, dependent=True, seed=seed)
        for block in marked.marks_of(case):
            assert set(block) == set(POINTS)
            assert misordered(block) == []
            # The successor starts behind the ring's weights, or behind all.
            assert (block["successor_let"] > block["first_full"]) >= late


def test_of_the_wide_kernel_too_the_last_to_draw_a_ticket_adds(marked: MarkedEmulator) -> None:
    tiling = wide_case.Tiling(blocks=3)
    blocks = marked.marks_of(wide_case.Case(20, 256, 768, tiling, dependent=True))
    assert all(set(POINTS) - set(block) <= {"summed"} for block in blocks)
    assert any("summed" in block for block in blocks)


def test_what_the_timeline_measures_can_be_launched(marked: MarkedEmulator) -> None:
    functions = marked.functions
    cases = range(functions.timeline_skinny_cases())
    taken = [functions.timeline_skinny_bytes(i, tokens) for i in cases for tokens in (1, 8, 16)]
    taken += [functions.timeline_wide_bytes(i) for i in range(4)]
    for bytes_ in taken:
        assert bytes_ > 0, marked.text(-bytes_)
        assert bytes_ + MARKS_SHARED_BYTES <= SHARED_BYTES
