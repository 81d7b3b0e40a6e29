"""What thread blocks of a cluster do to each other on the emulated GPU."""

import ctypes
import re
from typing import Any

import pytest
import torch
from torch import Tensor


def run(emulator: Any, kind: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What was sent, and what each lane of each thread block got."""
    source = torch.arange(1, 65, dtype=torch.int32)
    # Bulk copies move multiples of 16 bytes between multiples of 16.
    room = torch.zeros(68, dtype=torch.int32)
    start = -room.data_ptr() % 16 // 4
    room[start : start + 64] = source
    out = torch.zeros(size, 32, dtype=torch.int32)
    address = ctypes.c_void_p(room.data_ptr() + 4 * start)
    code = emulator.functions.emulate_cluster(
        kind, size, address, ctypes.c_void_p(out.data_ptr()), ctypes.c_uint64(seed)
    )
    assert code == 0, emulator.text(code)
    return source, out


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_remote_stores_and_loads(size: int, emulator: Any) -> None:
    _, out = run(emulator, 0, size)
    expected = sum(100 * rank for rank in range(size)) + size * torch.arange(32)
    assert (out == expected).all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_multicast_fills_every_thread_block_and_signals_its_barrier(
    size: int, emulator: Any
) -> None:
    for seed in range(5):
        source, out = run(emulator, 1, size, seed)
        assert (out == source[:32]).all()


def test_bytes_nobody_waited_for_are_poison_or_reported(emulator: Any) -> None:
    caught = 0
    for seed in range(10):
        try:
            _, out = run(emulator, 2, 2, seed)
            caught += bool((out == -1).any())
        except AssertionError as error:
            expected = r"a thread block that has left|a bulk copy over ordinary accesses"
            assert re.search(expected, str(error))  # noqa: PT017
            caught += 1
    assert caught > 0


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_counted_store_is_there_when_the_barrier_says_so(size: int, emulator: Any) -> None:
    for seed in range(5):
        _, out = run(emulator, 3, size, seed)
        senders = torch.arange(size).roll(1)
        assert torch.equal(out, (100 * senders[:, None] + torch.arange(32)).int())


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (3, 1, "outside of a cluster"),
        (4, 2, "in different thread blocks"),
        (5, 2, "over one that nobody has read"),
        (6, 2, "own wait for what others of the cluster do"),
    ],
)
def test_what_a_counted_store_must_not_do_is_reported(
    kind: int, size: int, message: str, emulator: Any
) -> None:
    with pytest.raises(AssertionError, match=message):
        run(emulator, kind, size)
