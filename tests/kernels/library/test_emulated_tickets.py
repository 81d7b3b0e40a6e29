"""Sums that thread blocks leave for the last of them, on the emulated GPU: what a ticket orders."""

import ctypes
from typing import Any

import torch
from torch import Tensor

BLOCKS = 3


def add_up(meets: bool, seed: int, emulator: Any) -> Tensor:
    """What the last of the thread blocks found, a sum a lane."""
    room = torch.full((4 * 32 * BLOCKS + 4,), torch.nan)
    counter, out = torch.zeros(1, dtype=torch.int32), torch.zeros(32)
    addresses = [room.data_ptr() + -room.data_ptr() % 16, counter.data_ptr(), out.data_ptr()]
    code = emulator.functions.emulate_add_up(
        *map(ctypes.c_void_p, addresses), BLOCKS, int(meets), ctypes.c_uint64(seed)
    )
    assert code == 0, emulator.text(code)
    assert int(counter) == BLOCKS
    return out


def test_a_ticket_orders_what_the_warp_has_met_for(emulator: Any) -> None:
    for seed in range(10):
        assert (add_up(True, seed, emulator) == 6.0).all()


def test_sums_that_it_does_not_order_may_be_missing(emulator: Any) -> None:
    found = [add_up(False, seed, emulator) for seed in range(10)]
    assert any(out.isnan().any() for out in found)
    # Lane 0's own are there.
    assert all(out[0] == 6.0 for out in found)
