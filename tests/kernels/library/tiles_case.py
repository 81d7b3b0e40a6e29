"""Calls of the emulated tiles kernel, and what they should give."""

import ctypes
import dataclasses
from ctypes import byref, c_int64, c_uint64, c_void_p
from typing import Any

import torch
from kernels.library.conftest import Linear, linear_arguments, pointer
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue, output_columns
from secateur_kernels.layouts import Fragment24


class Tiles(ctypes.Structure):
    """SecateurSparse24Tiles of csrc/include/secateur/core/sparse24_tiles.h."""

    _anonymous_ = ("linear",)
    _fields_ = (
        ("linear", Linear),
        *((name, c_void_p) for name in ("weight", "workspace", "counters")),
        *((name, c_int64) for name in ("workspace_bytes", "counter_count")),
        *((name, c_int64) for name in ("tile_rows", "tile_tokens", "stages")),
        *((name, c_int64) for name in ("blocks", "waves", "group")),
    )


class Needs(ctypes.Structure):
    """SecateurSparse24TilesNeeds of csrc/include/secateur/core/sparse24_tiles.h."""

    _fields_ = tuple(
        (name, c_int64) for name in ("workspace_bytes", "counter_count", "shared_bytes")
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One call."""

    tokens: int = 64
    rows: int = 128
    columns: int = 64
    tile: tuple[int, int] = (128, 64)
    stages: int = 2
    blocks: int = 1
    waves: int = 1
    group: int = 8
    dtype: torch.dtype = torch.bfloat16
    gate_up: bool = False
    silu: bool = False
    bias: bool = False
    residual: bool = False
    residual_padding: int = 0
    """Elements between the rows of the residual."""
    dependent: bool = False
    seed: int = 0


def arguments_of(
    case: Case,
    x: Tensor,
    weight: Fragment24,
    y: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tiles:
    rows = weight.shape[0]
    linear = linear_arguments(x, rows, y, bias, residual, case.gate_up, case.silu, case.dependent)
    return Tiles(
        linear,
        weight=pointer(weight.data),
        tile_rows=case.tile[0],
        tile_tokens=case.tile[1],
        stages=case.stages,
        blocks=case.blocks,
        waves=case.waves,
        group=case.group,
    )


def needs_of(arguments: Tiles, emulator: Any) -> Needs:
    found = Needs()
    code = emulator.functions.secateur_sparse24_tiles_needs(byref(arguments), byref(found))
    assert code == 0, emulator.text(code)
    return found


def emulate(arguments: Tiles, emulator: Any, seed: int) -> None:
    """Run it with a workspace full of NaN, and see that the counters are zero again."""
    needs = needs_of(arguments, emulator)
    # Four floats more, for the start may have to move to a multiple of 16 bytes.
    workspace = torch.full((needs.workspace_bytes // 4 + 4,), torch.nan)
    counters = torch.zeros(needs.counter_count + 1, dtype=torch.int32)
    arguments.workspace = workspace.data_ptr() + -workspace.data_ptr() % 16
    arguments.workspace_bytes = needs.workspace_bytes
    arguments.counters, arguments.counter_count = counters.data_ptr(), needs.counter_count
    call = emulator.functions.emulate_sparse24_tiles
    call.argtypes = [c_void_p, c_uint64]
    code = call(ctypes.addressof(arguments), seed)
    assert code == 0, emulator.text(code)
    assert not counters.any()


def integers(generator: torch.Generator, *shape: int, limit: int = 4) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=generator).float()


def random_weight(case: Case, generator: torch.Generator) -> Tensor:
    weight = integers(generator, case.rows, case.columns)
    order = torch.rand(case.rows, case.columns // 4, 4, generator=generator).argsort(2)
    return weight.masked_fill((order >= 2).view(weight.shape), 0.0).to(case.dtype)


def apart(matrix: Tensor, stride: int) -> Tensor:
    """The same values in rows `stride` elements apart, 16-byte aligned, NaN around them."""
    rows, columns = matrix.shape
    buffer = torch.full((rows * stride + 16,), torch.nan, dtype=matrix.dtype)
    start = -buffer.data_ptr() // 2 % 8
    view = buffer[start : start + rows * stride].view(rows, stride)[:, :columns]
    view.copy_(matrix)
    return view


def run(case: Case, emulator: Any) -> tuple[Tensor, Tensor]:
    """What the kernel computes, and what it should: [tokens, output columns] each."""
    generator = torch.Generator().manual_seed(case.seed)
    dense = random_weight(case, generator)
    packed = Fragment24.from_dense(dense, row_order="gate_up" if case.gate_up else "natural")
    x = integers(generator, case.tokens, case.columns).to(case.dtype)
    activation = "silu_and_mul" if case.silu else "none"
    out = output_columns(case.rows, activation)
    bias = integers(generator, case.rows).to(case.dtype) if case.bias else None
    residual = integers(generator, case.tokens, out).to(case.dtype) if case.residual else None
    y = torch.full((case.tokens, out), torch.nan, dtype=case.dtype)
    # The arguments are bare pointers: what they point to needs a name.
    x_apart = apart(x, case.columns + -case.columns % 8 + 8)
    residual_apart = None
    if residual is not None:
        residual_apart = apart(residual, out + case.residual_padding)
    arguments = arguments_of(case, x_apart, packed, y, bias, residual_apart)
    emulate(arguments, emulator, case.seed)
    expected = apply_epilogue(x.float() @ dense.float().T, bias, residual, activation)
    return y, expected.to(case.dtype)
