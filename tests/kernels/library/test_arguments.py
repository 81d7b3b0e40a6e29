"""What the C interface refuses, and in which words."""

import re
from typing import Any

import pytest
import torch
from kernels.library.build_emulation import CSRC

from secateur_kernels.layouts import Fragment24


class Call:
    """Sound arguments for three tokens, K split in two, and the memory behind them."""

    def __init__(self, emulator: Any) -> None:
        dense = torch.zeros(96, 128, dtype=torch.float16)
        self.weight = Fragment24.from_dense(dense, row_order="gate_up")
        self.x = torch.zeros(3, 128, dtype=torch.float16)
        self.y = torch.zeros(3, 96, dtype=torch.float16)
        self.workspace = torch.zeros(1 << 14)
        self.counters = torch.zeros(64, dtype=torch.int32)
        self.arguments = emulator.skinny_arguments(self.x, self.weight, self.y, (4, 2, 3, 2))
        self.arguments.workspace = self.workspace.data_ptr() + -self.workspace.data_ptr() % 16
        self.arguments.workspace_bytes = 4 * (1 << 14) - 16
        self.arguments.counters = self.counters.data_ptr()
        self.arguments.counter_count = 64


def test_sound_arguments_are_accepted(emulator: Any) -> None:
    assert emulator.check(Call(emulator).arguments) == "no error"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": 0}, "got a null pointer"),
        ({"weight": 0}, "got a null pointer"),
        ({"y": None}, "got a null pointer"),
        ({"rows": 0}, "at least one row"),
        ({"rows": 2**30 + 1, "gate_up": 0}, "to 2**30"),
        ({"columns": 126}, "columns divisible by 4"),
        ({"columns": 0}, "at least one row"),
        ({"tokens": 0}, "expected 1 to 64 tokens"),
        ({"tokens": 65}, "expected 1 to 64 tokens"),
        ({"rows": 100}, "rows divisible by 16"),
        ({"gate_up": 0, "silu_and_mul": 1}, "expected row order gate_up for silu_and_mul"),
        ({"value_type": 2}, "expected value type"),
        ({"warps": 0}, "expected 1 to 8 warps"),
        ({"warps": 10}, "expected 1 to 8 warps"),
        ({"warps": 3}, "a multiple of 4 row tiles"),
        ({"row_tiles": 1}, "of 2 or 4 row tiles"),
        ({"row_tiles": 4, "warps": 5, "tokens": 64}, "to 4 with 4 row tiles and over 32 tokens"),
        ({"stages": 1}, "expected 2 to 16 stages"),
        ({"stages": 17}, "expected 2 to 16 stages"),
        ({"lead": -1}, "expected 0 or more steps as the lead"),
        ({"ahead": -1}, "expected 0 to 1024 steps"),
        ({"ahead": 1025}, "expected 0 to 1024 steps"),
        ({"blocks": 0}, "thread blocks"),
        ({"blocks": 3}, "thread blocks"),
        ({"blocks": 2**40}, "thread blocks"),
        ({"workspace_bytes": 100}, "the workspace is smaller"),
        ({"workspace": None}, "the workspace is smaller"),
        ({"counter_count": 3}, "fewer counters"),
        ({"counters": None}, "fewer counters"),
        ({"x_stride": -1}, "strides of x and residual"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, int], text: str, emulator: Any) -> None:
    call = Call(emulator)
    for name, value in changes.items():
        setattr(call.arguments, name, value)
    assert text in emulator.check(call.arguments)


@pytest.mark.parametrize("name", ["x", "weight", "y", "workspace", "counters"])
def test_misaligned_pointers_are_refused(name: str, emulator: Any) -> None:
    call = Call(emulator)
    setattr(call.arguments, name, getattr(call.arguments, name) + 1)
    assert "a pointer is not aligned" in emulator.check(call.arguments)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dense": 0}, "null pointer"),
        ({"columns": 6}, "columns divisible by 4"),
        ({"rows": 8, "gate_up": 1}, "rows divisible by 16"),
        ({"dense": 64 + 8}, "not aligned"),
        ({"columns": 4, "dense": 64 + 4}, "not aligned"),
        ({"weight": 64 + 8}, "not aligned"),
    ],
    ids=str,
)
def test_unpacking_refuses_what_does_not_fit(
    changes: dict[str, int], text: str, emulator: Any
) -> None:
    arguments = emulator.unpack_arguments(64, 64, 64, 64, 0, 0)
    for name, value in changes.items():
        setattr(arguments, name, value)
    assert text in emulator.unpack(arguments)


def test_every_code_has_its_text(emulator: Any) -> None:
    header = (CSRC / "include/secateur/core/status.h").read_text(encoding="utf-8")
    codes = [int(code) for code in re.findall(r"SECATEUR_\w+ = (-\d+)", header)]
    assert codes == [-code for code in range(1, len(codes) + 1)]
    texts = {emulator.text(code) for code in (0, *codes)}
    assert len(texts) == len(codes) + 1
    assert "unknown error code" not in texts
    assert emulator.text(-len(codes) - 1) == "unknown error code"
