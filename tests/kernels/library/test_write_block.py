"""The epilogue with 16-byte stores, on one emulated warp, against the plain one in torch."""

import ctypes
from ctypes import c_void_p
from typing import Any

import pytest
import torch
from kernels.library.conftest import linear_arguments
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue, output_columns

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [(1, 1), (1, 3), (1, 8), (2, 3), (2, 4), (4, 1), (4, 4), (4, 8)]


def padded(matrix: Tensor, alignment: int) -> Tensor:
    """The same numbers in rows that start at multiples of `alignment` elements, NaN between."""
    rows, columns = matrix.shape
    stride = columns + -columns % alignment + alignment
    wide = matrix.new_full((rows + 1, stride), torch.nan)
    start = (-wide.data_ptr() // 2) % alignment
    view = wide.flatten()[start : start + rows * stride].view(rows, stride)[:, :columns]
    view.copy_(matrix)
    return view


def check(
    emulator: Any,
    shape: tuple[int, int],
    rows: int,
    tokens: int,
    place: tuple[int, int],
    dtype: torch.dtype = BF16,
    gate_up: bool = False,
    silu: bool = False,
    residual: bool = False,
    alignment: int = 8,
) -> None:
    """The warp's part of y is right to the bit, and nothing else of y is written.

    `place`: the warp's first row tile and first token.
    """
    generator = torch.Generator().manual_seed(rows + 7 * tokens)
    row_tiles, token_tiles = shape
    tile, token = place
    activation = "silu_and_mul" if silu else "none"
    columns = output_columns(rows, activation)
    product = torch.randint(-9, 10, (tokens, rows), generator=generator).float()
    bias = torch.randint(-9, 10, (rows,), generator=generator).to(dtype)
    added = torch.randint(-9, 10, (tokens, columns), generator=generator).to(dtype)
    residuals = padded(added, alignment) if residual else None
    expected = apply_epilogue(product, bias, added if residual else None, activation).to(dtype)
    y = torch.full((tokens, columns), torch.nan, dtype=dtype)
    sums = torch.full((16 * row_tiles, 8 * token_tiles), torch.nan)
    mine = torch.zeros_like(y, dtype=torch.bool)
    for row in range(16 * row_tiles):
        logical = logical_row(tile * 16 + row, rows, gate_up)
        if logical is None:
            continue
        here = product[token : token + 8 * token_tiles, logical]
        sums[row, : len(here)] = here
        mine[token : token + 8 * token_tiles, logical % columns] = True
    x = torch.zeros(tokens, 8, dtype=dtype)
    arguments = linear_arguments(x, rows, y, bias, residuals, gate_up, silu)
    call = emulator.functions.emulate_write_block
    call.argtypes = [c_void_p, *[ctypes.c_int] * 4, c_void_p]
    code = call(ctypes.addressof(arguments), *shape, *place, sums.data_ptr())
    assert code == 0, emulator.text(code)
    assert y[~mine].isnan().all()
    if silu:
        tolerance = 2.0 ** (-7 if dtype == BF16 else -10)
        torch.testing.assert_close(y[mine], expected[mine], rtol=tolerance, atol=tolerance)
    else:
        assert torch.equal(y[mine], expected[mine])


def logical_row(row: int, rows: int, gate_up: bool) -> int | None:
    """The logical row of a packed row; None for padding."""
    if row >= rows + -rows % 16 or (not gate_up and row >= rows):
        return None
    if not gate_up:
        return row
    tile, within = divmod(row, 16)
    return tile * 8 + within if within < 8 else rows // 2 + tile * 8 + within - 8


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("kind", ["natural", "gate_up", "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_in_its_place(
    shape: tuple[int, int], kind: str, residual: bool, emulator: Any
) -> None:
    options = {"gate_up": kind != "natural", "silu": kind == "silu", "residual": residual}
    # In the middle of y; at its end, rows and tokens missing; beyond its end.
    check(emulator, shape, 160, 90, (2, 8), **options)
    check(emulator, shape, 160, 21, (8, 16), FP16, **options)
    check(emulator, shape, 16, 21, (1, 16), **options)
    check(emulator, shape, 160, 8, (0, 8), **options)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("rows", [150, 37, 72])
def test_rows_of_y_that_are_not_aligned(rows: int, residual: bool, emulator: Any) -> None:
    for shape in ((1, 3), (4, 4)):
        check(emulator, shape, rows, 30, (0, 8), residual=residual)
        check(emulator, shape, rows, 30, (1, 0), residual=residual, alignment=1)
