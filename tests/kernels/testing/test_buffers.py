"""Poisoned memory is there, and shows what was done to it."""

import pytest
import torch

from secateur_kernels.testing.buffers import (
    Surroundings,
    poison_free_memory,
    poisoned_allocations,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize(
    ("shape", "gap", "offset"),
    [((5,), 0, 0), ((5,), 0, 3), ((4, 7), 5, 1), ((2, 3, 5), 3, 1), ((0, 4), 2, 0), ((3, 4), 0, 0)],
)
def test_copies_lie_in_poison(
    shape: tuple[int, ...], gap: int, offset: int, dtype: torch.dtype
) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).to(dtype).view(shape)
    around = Surroundings(margin=512)
    copy = around.place("x", tensor, gap, offset)
    assert torch.equal(copy, tensor)
    if tensor.ndim > 1:
        assert copy.stride(-2) == shape[-1] + gap
    assert copy.stride(-1) == 1
    raw = torch.as_strided(copy, (copy.untyped_storage().nbytes() // copy.itemsize,), (1,), 0)
    poison = torch.full((1,), 0xFF, dtype=torch.uint8).expand(copy.itemsize).contiguous()
    expected = poison.view(dtype)
    is_poison = raw.isnan() if dtype.is_floating_point else raw == expected
    assert int(is_poison.sum()) == raw.numel() - tensor.numel()
    around.check()


def test_a_write_outside_is_found() -> None:
    around = Surroundings(margin=512)
    around.place("bias", torch.zeros(3, dtype=torch.float16))
    copy = around.place("x", torch.zeros(2, 4, dtype=torch.float16), gap=2)
    around.check()
    torch.as_strided(copy, (1,), (1,), copy.storage_offset() - 1).fill_(1.0)
    with pytest.raises(AssertionError, match=r"2 bytes in or around x .* byte -2 from its start"):
        around.check()


def test_a_write_between_rows_or_into_an_input_is_found() -> None:
    for column in (2, 4):
        around = Surroundings(margin=512)
        copy = around.place("x", torch.zeros(2, 4, dtype=torch.float16), gap=2)
        torch.as_strided(copy, (1,), (1,), copy.storage_offset() + column).fill_(1.0)
        with pytest.raises(AssertionError, match="in or around x were overwritten"):
            around.check()


def test_allocations_are_poisoned_and_the_mode_comes_back() -> None:
    assert torch.get_deterministic_debug_mode() == 0
    with poisoned_allocations():
        assert bool(torch.empty(5, dtype=torch.bfloat16).isnan().all())
        assert bool(torch.zeros(1).new_empty((2, 3)).isnan().all())
        assert int(torch.empty(2, dtype=torch.int32).min()) == torch.iinfo(torch.int32).max
        with pytest.raises(RuntimeError, match="stopped"), poisoned_allocations():
            raise RuntimeError("stopped")
    assert torch.get_deterministic_debug_mode() == 0


def test_free_memory_can_be_poisoned() -> None:
    poison_free_memory(CPU, largest=1 << 16)
