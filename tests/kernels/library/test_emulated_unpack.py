"""The unpacking kernel's own source on an emulated GPU, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur_kernels.layouts import Fragment24


def sparse_bits(rows: int, columns: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Any 16 bits at the kept columns, NaN and -0.0 among them, +0.0 elsewhere; and the mask."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**15), 2**15, (rows, columns), generator=generator).to(torch.int16)
    bits[:, ::7] = -(2**15)
    order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(2)
    keep = (order < 2).view(rows, columns)
    return bits.masked_fill(~keep, 0).view(dtype), keep


def check(weight: Tensor, keep: Tensor, row_order: str, emulator: Any) -> None:
    packed = Fragment24.from_dense(weight, keep, row_order=row_order)
    rows, columns = weight.shape
    buffer = torch.full((rows * columns + 64,), 12345, dtype=torch.int16)
    assert buffer.data_ptr() % 16 == 0
    arguments = emulator.unpack_arguments(
        packed.data.data_ptr(), buffer.data_ptr(), rows, columns, row_order == "gate_up", 0
    )
    assert emulator.unpack(arguments) == "no error"
    assert torch.equal(buffer[: rows * columns].view(rows, columns), weight.view(torch.int16))
    assert (buffer[rows * columns :] == 12345).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (1, 4), (50, 68), (130, 200), (17, 76)], ids=str)
def test_every_bit_comes_back(size: tuple[int, int], dtype: torch.dtype, emulator: Any) -> None:
    check(*sparse_bits(*size, dtype, 1), "natural", emulator)


@pytest.mark.parametrize("rows", [16, 48, 144])
def test_gate_and_up_rows_go_back_to_their_places(rows: int, emulator: Any) -> None:
    check(*sparse_bits(rows, 132, torch.bfloat16, 2), "gate_up", emulator)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.integers(1, 90), groups=st.integers(1, 50), seed=st.integers(0, 1000))
def test_any_size(rows: int, groups: int, seed: int, emulator: Any) -> None:
    check(*sparse_bits(rows, 4 * groups, torch.float16, seed), "natural", emulator)
