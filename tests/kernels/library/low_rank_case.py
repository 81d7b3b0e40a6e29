"""A call of the low-rank kernels on the emulated GPU, and what it should give.

Values are small integers: every sum is exact in fp32 whatever its order, so that results must be
equal bit for bit.
"""

import ctypes
import dataclasses
from ctypes import c_int32, c_int64, c_uint64, c_void_p
from typing import Any

import torch
from kernels.library.conftest import Linear, linear_arguments
from kernels.library.skinny_case import integers, surrounded
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.low_rank_linear.reference import product


class Division(ctypes.Structure):
    """SecateurLowRankDivision of csrc/include/secateur/core/low_rank.h."""

    _fields_ = (
        *((name, c_int32) for name in ("warps", "row_tiles", "stages", "boxes")),
        ("blocks", c_int64),
        ("ahead", c_int32),
    )


class LowRankArguments(ctypes.Structure):
    """SecateurLowRank of csrc/include/secateur/core/low_rank.h."""

    _anonymous_ = ("linear",)
    _fields_ = (
        ("linear", Linear),
        *((name, c_void_p) for name in ("down", "up", "sparse", "group_rows")),
        *((name, c_int64) for name in ("groups", "rank")),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
        ("down_division", Division),
        ("up_division", Division),
    )


class LowRankNeeds(ctypes.Structure):
    """SecateurLowRankNeeds of csrc/include/secateur/core/low_rank.h."""

    _fields_ = tuple(
        (name, c_int64) for name in ("workspace_bytes", "down_shared_bytes", "up_shared_bytes")
    )


Tiling = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Case:
    tokens: int = 1
    group_rows: tuple[int, ...] = (32,)
    columns: int = 128
    rank: int = 16
    down: Tiling = (2, 1, 2, 1)
    """Warps, row tiles, stages, ranges of K."""
    up: Tiling = (2, 1, 2, 1)
    """Warps, row tiles, stages, thread blocks."""
    dtype: torch.dtype = torch.bfloat16
    sparse: bool = False
    gate_up: bool = False
    """Row order of the 2:4 weight."""
    silu: bool = False
    bias: bool = False
    residual: bool = False
    x_padding: int = 0
    """Elements between the rows of x."""
    x_start: int = 0
    """Elements before the first row: misaligns it."""
    down_start: int = 0
    """Elements before the first row of down."""
    dependent: bool = False
    seed: int = 0
    boxes: tuple[int, int] = (0, 0)
    """The size of either kernel's clusters where it fetches boxes."""
    ahead: tuple[int, int] = (0, 0)
    """Stages, of either kernel."""


class Call:
    """Arguments, and the memory behind them, which bare pointers do not keep alive."""

    def __init__(
        self,
        x: Tensor,
        factors: LowRank,
        packed: Fragment24 | None,
        y: Tensor,
        case: Case,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> None:
        self.kept = (x, factors, packed, y, bias, residual)
        rows = sum(factors.group_rows)
        self.groups = (c_int64 * len(factors.group_rows))(*factors.group_rows)
        self.arguments = LowRankArguments(
            linear_arguments(x, rows, y, bias, residual, case.gate_up, case.silu, case.dependent),
            down=factors.down.data_ptr(),
            up=factors.up.data_ptr(),
            sparse=0 if packed is None else packed.data.data_ptr(),
            group_rows=ctypes.addressof(self.groups),
            groups=len(factors.group_rows),
            rank=factors.rank,
            down_division=Division(*case.down[:3], case.boxes[0], case.down[3], case.ahead[0]),
            up_division=Division(*case.up[:3], case.boxes[1], case.up[3], case.ahead[1]),
        )

    def needs(self, emulator: Any) -> LowRankNeeds:
        found = LowRankNeeds()
        code = emulator.functions.secateur_low_rank_needs(
            ctypes.byref(self.arguments), ctypes.byref(found)
        )
        assert code == 0, emulator.text(code)
        return found

    def run(self, emulator: Any, seed: int) -> None:
        """Run both kernels with a workspace full of NaN."""
        needs = self.needs(emulator)
        workspace = torch.full((needs.workspace_bytes // 4 + 4,), torch.nan)
        self.arguments.workspace = workspace.data_ptr() + -workspace.data_ptr() % 16
        self.arguments.workspace_bytes = needs.workspace_bytes
        emulator.functions.emulate_low_rank.argtypes = [c_void_p, c_uint64]
        code = emulator.functions.emulate_low_rank(ctypes.byref(self.arguments), seed)
        assert code == 0, emulator.text(code)


def factors_of(case: Case, generator: torch.Generator) -> LowRank:
    groups, rows = len(case.group_rows), sum(case.group_rows)
    down = integers(generator, groups * case.rank, case.columns, limit=2).to(case.dtype)
    up = integers(generator, rows, case.rank, limit=2).to(case.dtype)
    buffer = torch.full((down.numel() + 32,), torch.nan, dtype=case.dtype)
    start = -buffer.data_ptr() % 16 // 2 + case.down_start
    placed = buffer[start : start + down.numel()].view(down.shape)
    placed.copy_(down)
    return LowRank(placed, up, case.group_rows)


def sparse_of(case: Case, generator: torch.Generator) -> Tensor:
    weight = integers(generator, sum(case.group_rows), case.columns)
    order = torch.rand(len(weight), case.columns // 4, 4, generator=generator).argsort(2)
    return weight.masked_fill((order >= 2).view(weight.shape), 0.0).to(case.dtype)


def run(case: Case, emulator: Any) -> tuple[Tensor, Tensor]:
    """What the kernels compute, and what they should: [tokens, output columns] each."""
    generator = torch.Generator().manual_seed(case.seed)
    factors = factors_of(case, generator)
    rows = sum(case.group_rows)
    x = integers(generator, case.tokens, case.columns, limit=3).to(case.dtype)
    exact = product(x, factors.down, factors.up, case.group_rows, torch.float32)
    packed = None
    if case.sparse:
        dense = sparse_of(case, generator)
        packed = Fragment24.from_dense(dense, row_order="gate_up" if case.gate_up else "natural")
        exact = exact + x.float() @ dense.float().T
    out = rows // 2 if case.silu else rows
    bias = integers(generator, rows).to(case.dtype) if case.bias else None
    residual = integers(generator, case.tokens, out).to(case.dtype) if case.residual else None
    y = torch.full((case.tokens, out), torch.nan, dtype=case.dtype)
    x_view = surrounded(x, case.x_padding, case.x_start)
    placed = None if residual is None else surrounded(residual, case.x_padding, case.x_start)
    Call(x_view, factors, packed, y, case, bias, placed).run(emulator, case.seed)
    activation = "silu_and_mul" if case.silu else "none"
    return y, apply_epilogue(exact, bias, residual, activation).to(case.dtype)
