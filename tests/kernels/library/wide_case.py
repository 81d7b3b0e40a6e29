"""A call of the wide kernel on the emulated GPU, and what it should give.

Values are small integers, so that results must be equal bit for bit.
"""

import ctypes
import dataclasses
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import torch
from kernels.library.conftest import Linear, linear_arguments, pointer
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.layouts import Fragment24


class Wide(ctypes.Structure):
    """SecateurSparse24Wide of csrc/include/secateur/core/sparse24_wide.h."""

    _anonymous_ = ("linear",)
    _fields_ = (
        ("linear", Linear),
        *((name, c_void_p) for name in ("weight", "workspace", "counters")),
        *((name, c_int64) for name in ("workspace_bytes", "counter_count")),
        *((name, c_int32) for name in ("warpgroups", "panels", "tile_tokens", "stages")),
        *((name, c_int32) for name in ("cluster_rows", "cluster_tokens", "cluster_steps")),
        *((name, c_int64) for name in ("blocks", "waves", "group")),
        *((name, c_int32) for name in ("late", "ahead")),
    )


class WideNeeds(ctypes.Structure):
    """SecateurSparse24WideNeeds of csrc/include/secateur/core/sparse24_wide.h."""

    _fields_ = (
        ("workspace_bytes", c_int64),
        ("counter_count", c_int64),
        ("shared_bytes", c_int64),
    )


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The configuration's part of the arguments."""

    warpgroups: int = 2
    panels: int = 1
    tile_tokens: int = 32
    stages: int = 3
    cluster_rows: int = 1
    cluster_tokens: int = 1
    cluster_steps: int = 1
    blocks: int = 1
    waves: int = 0
    group: int = 4
    late: bool = False
    ahead: int = 0

    @property
    def cluster(self) -> int:
        return self.cluster_rows * self.cluster_tokens * self.cluster_steps

    def groups(self, tokens: int, rows: int) -> int:
        """Groups of tiles of a problem."""
        high = self.warpgroups * self.panels * 64 * self.cluster_rows
        return -(-rows // high) * -(-tokens // (self.tile_tokens * self.cluster_tokens))


@dataclasses.dataclass(frozen=True)
class Case:
    tokens: int
    rows: int
    columns: int
    tiling: Tiling = Tiling()
    dtype: torch.dtype = torch.bfloat16
    gate_up: bool = False
    silu: bool = False
    bias: bool = False
    bias_aligned: bool = True
    """Starts at a multiple of 16 bytes."""
    residual: bool = False
    y_aligned: bool = True
    """Starts at a multiple of 16 bytes."""
    x_padding: int = 0
    """Elements between the rows of x: more, so that rows are aligned."""
    dependent: bool = False
    """Launched as a dependent: until it has waited it may read nothing but the weight."""
    seed: int = 0


def integers(generator: torch.Generator, *shape: int, limit: int = 4) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=generator).float()


def weight_of(case: Case, generator: torch.Generator) -> Tensor:
    weight = integers(generator, case.rows, case.columns)
    order = torch.rand(case.rows, case.columns // 4, 4, generator=generator).argsort(2)
    return weight.masked_fill((order >= 2).view(weight.shape), 0.0).to(case.dtype)


def aligned_rows(matrix: Tensor, padding: int) -> Tensor:
    """The same values in rows that start at multiples of 16 bytes, with NaN around them."""
    rows, columns = matrix.shape
    stride = -(-(columns + padding) // 8) * 8
    buffer = torch.full((rows * stride + 32,), torch.nan, dtype=matrix.dtype)
    start = 8 + -(buffer.data_ptr() // 2) % 8
    view = buffer[start : start + rows * stride].view(rows, stride)[:, :columns]
    view.copy_(matrix)
    return view


def arguments_of(
    x: Tensor,
    weight: Fragment24,
    y: Tensor,
    tiling: Tiling,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu_and_mul: bool = False,
    dependent: bool = False,
) -> Wide:
    """Without workspace and counters."""
    gate_up = weight.row_order == "gate_up"
    linear = linear_arguments(
        x, weight.shape[0], y, bias, residual, gate_up, silu_and_mul, dependent
    )
    return Wide(linear, weight=pointer(weight.data), **dataclasses.asdict(tiling))


def needs_of(arguments: Wide, emulator: Any) -> WideNeeds:
    found = WideNeeds()
    code = emulator.functions.secateur_sparse24_wide_needs(
        ctypes.byref(arguments), ctypes.byref(found)
    )
    assert code == 0, emulator.text(code)
    return found


def emulate(arguments: Wide, seed: int, emulator: Any) -> None:
    """Run it with a workspace full of NaN, and see that the counters are zero again."""
    needs = needs_of(arguments, emulator)
    workspace = torch.full((needs.workspace_bytes // 4 + 4,), torch.nan)
    counters = torch.zeros(needs.counter_count + 1, dtype=torch.int32)
    arguments.workspace = workspace.data_ptr() + -workspace.data_ptr() % 16
    arguments.workspace_bytes = needs.workspace_bytes
    arguments.counters, arguments.counter_count = counters.data_ptr(), needs.counter_count
    code = emulator.functions.emulate_sparse24_wide(ctypes.byref(arguments), ctypes.c_uint64(seed))
    assert code == 0, emulator.text(code)
    assert not counters.any()


def run(case: Case, emulator: Any) -> tuple[Tensor, Tensor]:
    """What the kernel computes, and what it should: [tokens, output columns] each."""
    generator = torch.Generator().manual_seed(case.seed)
    dense = weight_of(case, generator)
    packed = Fragment24.from_dense(dense, row_order="gate_up" if case.gate_up else "natural")
    x = integers(generator, case.tokens, case.columns).to(case.dtype)
    out = case.rows // 2 if case.silu else case.rows
    bias = None
    if case.bias:
        bias_room = integers(generator, case.rows + 16).to(case.dtype)
        start = -(bias_room.data_ptr() // 2) % 8 + (0 if case.bias_aligned else 1)
        bias = bias_room[start : start + case.rows]
    residual = integers(generator, case.tokens, out).to(case.dtype) if case.residual else None
    room = torch.full((case.tokens * out + 16,), torch.nan, dtype=case.dtype)
    start = -(room.data_ptr() // 2) % 8 + (0 if case.y_aligned else 1)
    y = room[start : start + case.tokens * out].view(case.tokens, out)
    # The arguments are bare pointers: what they point to needs a name.
    x_view = aligned_rows(x, case.x_padding)
    residual_view = None if residual is None else aligned_rows(residual, case.x_padding)
    arguments = arguments_of(
        x_view, packed, y, case.tiling, bias, residual_view, case.silu, case.dependent
    )
    emulate(arguments, case.seed, emulator)
    activation = "silu_and_mul" if case.silu else "none"
    expected = apply_epilogue(x.float() @ dense.float().T, bias, residual, activation)
    return y, expected.to(case.dtype)
