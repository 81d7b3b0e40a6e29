"""A call of the skinny kernel on the emulated GPU, and what it should give.

Values are small integers: every sum is exact in fp32 whatever its order, so that results must be
equal bit for bit.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.layouts import Fragment24


@dataclasses.dataclass(frozen=True)
class Case:
    tokens: int = 1
    rows: int = 64
    columns: int = 64
    warps: int = 2
    row_tiles: int = 2
    stages: int = 2
    blocks: int = 1
    cluster: int = 1
    lead: int = 0
    ahead: int = 0
    dtype: torch.dtype = torch.bfloat16
    bulk: bool = True
    gate_up: bool = False
    silu: bool = False
    bias: bool = False
    residual: bool = False
    x_padding: int = 0
    """Elements between the rows of x."""
    x_start: int = 0
    """Elements before the first row: misaligns it."""
    dependent: bool = False
    """Launched as a dependent: until it has waited it may read nothing but the weight."""
    seed: int = 0

    @property
    def tiling(self) -> tuple[int, int, int, int]:
        return self.warps, self.row_tiles, self.stages, self.blocks


def integers(generator: torch.Generator, *shape: int, limit: int = 4) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=generator).float()


def weight_of(case: Case, generator: torch.Generator) -> Tensor:
    weight = integers(generator, case.rows, case.columns)
    order = torch.rand(case.rows, case.columns // 4, 4, generator=generator).argsort(2)
    return weight.masked_fill((order >= 2).view(weight.shape), 0.0).to(case.dtype)


def surrounded(matrix: Tensor, padding: int, start: int) -> Tensor:
    """The same values, with NaN before, between and after the rows."""
    rows, columns = matrix.shape
    stride = columns + padding
    buffer = torch.full((start + rows * stride + 16,), torch.nan, dtype=matrix.dtype)
    view = buffer[start : start + rows * stride].view(rows, stride)[:, :columns]
    view.copy_(matrix)
    return view


def run(case: Case, emulator: Any) -> tuple[Tensor, Tensor]:
    """What the kernel computes, and what it should: [tokens, output columns] each."""
    generator = torch.Generator().manual_seed(case.seed)
    dense = weight_of(case, generator)
    packed = Fragment24.from_dense(dense, row_order="gate_up" if case.gate_up else "natural")
    x = integers(generator, case.tokens, case.columns).to(case.dtype)
    out = case.rows // 2 if case.silu else case.rows
    bias = integers(generator, case.rows).to(case.dtype) if case.bias else None
    residual = integers(generator, case.tokens, out).to(case.dtype) if case.residual else None
    y = torch.full((case.tokens, out), torch.nan, dtype=case.dtype)
    # The arguments are bare pointers: what they point to needs a name.
    x_view = surrounded(x, case.x_padding, case.x_start)
    residual_view = None
    if residual is not None:
        residual_view = surrounded(residual, case.x_padding, case.x_start)
    arguments = emulator.skinny_arguments(
        *(x_view, packed, y, case.tiling, bias, residual_view, case.silu, case.dependent),
        *(case.cluster, case.lead, case.ahead),
    )
    emulator.skinny(arguments, case.bulk, case.seed)
    activation = "silu_and_mul" if case.silu else "none"
    expected = apply_epilogue(x.float() @ dense.float().T, bias, residual, activation)
    return y, expected.to(case.dtype)
