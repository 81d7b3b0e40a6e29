"""Bulk copies over what threads read or wrote, on the emulated GPU: a fence stands between."""

import ctypes
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("writes", [False, True], ids=["reads", "writes"])
@pytest.mark.parametrize("fence", [0, 1, 2], ids=["nobody", "who accessed it", "who copies"])
def test_a_fence_is_asked_for(fence: int, writes: bool, emulator: Any) -> None:
    source = torch.zeros(512 + 16, dtype=torch.uint8)
    address = source.data_ptr() + -source.data_ptr() % 16
    for seed in range(5):
        code = emulator.functions.emulate_reuse(
            ctypes.c_void_p(address), int(writes), fence, ctypes.c_uint64(seed)
        )
        if fence:
            assert code == 0, emulator.text(code)
        else:
            assert "a bulk copy over ordinary accesses, without a fence" in emulator.text(code)
