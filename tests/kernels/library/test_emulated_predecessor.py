"""What a thread reads behind a kernel that still runs, on the emulated GPU: it waits itself."""

import ctypes
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("waiting", [0, 1, 31, 32])
def test_every_thread_has_to_wait(waiting: int, emulator: Any) -> None:
    source, out = torch.tensor([3, 4], dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (source, out)]
    for seed in range(5):
        code = emulator.functions.emulate_read_behind(*addresses, waiting, ctypes.c_uint64(seed))
        if waiting == 32:
            assert code == 0, emulator.text(code)
            assert (out == 7).all()
        else:
            assert "access before the kernel in front has ended" in emulator.text(code)
