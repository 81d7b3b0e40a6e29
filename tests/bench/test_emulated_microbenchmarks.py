"""The device code of the one-hot probe and of the microbenchmarks' stream, on an emulated GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from ctypes import c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.one_hot_probe import find
from torch import Tensor

ROOT = Path(__file__).parents[2]
UNIT_BYTES = 4608


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("emulation") / "libmicrobenchmarks.so"
    includes = ("csrc/include", "csrc", "bench/microbenchmarks", "tests/kernels/library/emulation")
    command: list[Any] = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-o", library]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DSECATEUR_EMULATED"]
    command += [f"-I{ROOT / name}" for name in includes]
    command.append(Path(__file__).parent / "emulation" / "microbenchmarks.cpp")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    functions = ctypes.CDLL(str(library))
    functions.message.restype = ctypes.c_char_p
    functions.emulate_probe.argtypes = [c_void_p, c_int64, c_void_p, c_int]
    functions.emulate_boxes.argtypes = [c_void_p, *[c_int] * 6, c_uint64]
    functions.emulate_stream.argtypes = [
        *(c_void_p, c_int64, c_int64),
        *(c_int, c_int, c_int, c_void_p),
        *(c_int, c_int, c_int, c_uint64),
    ]
    return functions


def hardware(emulated: ctypes.CDLL) -> Callable[[Tensor, str], Tensor]:
    """The probe's program, without a GPU."""

    def run(units: Tensor, dtype: str) -> Tensor:
        room = torch.empty(units.numel() + 16, dtype=torch.uint8)
        start = -room.data_ptr() % 16
        room[start : start + units.numel()] = units.flatten()
        sums = torch.full((len(units), 2, 8, 128, 4), torch.nan)
        code = emulated.emulate_probe(
            room.data_ptr() + start, len(units), sums.data_ptr(), dtype == "bf16"
        )
        assert code == 0, emulated.message()
        return sums

    return run


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_probe_finds_nothing_wrong_with_the_manual(dtype: str, emulated: ctypes.CDLL) -> None:
    """The emulation follows the PTX manual: what the probe says of it is said of the probe."""
    findings = find(hardware(emulated), dtype)
    assert [found.differences for found in findings] == [(), ()]


def numbered_words(count: int) -> tuple[Tensor, int]:
    """Units of words that are their own index, and the first address that bulk copies take."""
    room = torch.arange(count * UNIT_BYTES // 4 + 4, dtype=torch.int32)
    return room, room.data_ptr() + -room.data_ptr() % 16


@pytest.mark.parametrize("cluster", [1, 2, 4])
@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("dependent", [False, True])
def test_a_stream_ends_and_reads_what_is_there(
    cluster: int, stages: int, dependent: bool, emulated: ctypes.CDLL
) -> None:
    """No deadlock, no stage filled before it is free, nothing read beyond the source."""
    room, address = numbered_words(24)
    for seed, (prefetch, total) in enumerate([(False, 40), (True, 40), (True, 4), (False, 24)]):
        sink = torch.full((1,), -1, dtype=torch.int32)
        code = emulated.emulate_stream(
            *(address, 24, total, stages, 4, prefetch, sink.data_ptr()),
            *(2 * cluster, cluster, dependent, seed),
        )
        assert code == 0, emulated.message()
        # The first word of the first stage at the end: of what lap came last there.
        last = (total // 4 - 1) // stages * stages
        first_word = (address - room.data_ptr()) // 4
        assert int(sink) == first_word + last * 4 % 24 * (UNIT_BYTES // 4)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_a_stream_of_boxes_ends_and_stays_in_the_matrix(
    stages: int, blocks: int, emulated: ctypes.CDLL
) -> None:
    """No deadlock, no box over another that is under way, nothing read beyond the matrix."""
    row_blocks, box_rows, row_stages, stage_boxes = 4, 16, 2, 3
    matrix = torch.zeros(row_blocks * box_rows, 64 * row_stages * stage_boxes, dtype=torch.int16)
    sizes = (row_blocks, box_rows, row_stages, stage_boxes, stages, blocks)
    assert emulated.emulate_boxes(matrix.data_ptr(), *sizes, blocks) == 0, emulated.message()
