"""The kernels' source compiled for an emulated GPU, and its C interface."""

import ctypes
import shutil
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import pytest
import torch
from kernels.library.build_emulation import build_emulation
from torch import Tensor

from secateur_kernels.layouts import Fragment24


class Unpack24(ctypes.Structure):
    """SecateurUnpack24 of csrc/include/secateur/core/unpack24.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("dense", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("gate_up", c_int32),
        ("device", c_int32),
    )


class Linear(ctypes.Structure):
    """SecateurLinear of csrc/include/secateur/core/linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "bias", "residual", "y")),
        *((name, c_int64) for name in ("x_stride", "residual_stride")),
        *((name, c_int64) for name in ("tokens", "rows", "columns")),
        *((name, c_int32) for name in ("value_type", "gate_up", "silu_and_mul")),
        *((name, c_int32) for name in ("dependent", "device")),
    )


class Skinny(ctypes.Structure):
    """SecateurSparse24Skinny of csrc/include/secateur/core/sparse24_skinny.h."""

    _anonymous_ = ("linear",)
    _fields_ = (
        ("linear", Linear),
        *((name, c_void_p) for name in ("weight", "workspace", "counters")),
        *((name, c_int64) for name in ("workspace_bytes", "counter_count")),
        *((name, c_int32) for name in ("warps", "row_tiles", "stages", "cluster")),
        ("blocks", c_int64),
        *((name, c_int32) for name in ("lead", "ahead")),
    )


class SkinnyNeeds(ctypes.Structure):
    """SecateurSparse24SkinnyNeeds of csrc/include/secateur/core/sparse24_skinny.h."""

    _fields_ = (
        ("workspace_bytes", c_int64),
        ("counter_count", c_int64),
        ("shared_bytes", c_int64),
    )


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def linear_arguments(
    x: Tensor,
    rows: int,
    y: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate_up: bool = False,
    silu_and_mul: bool = False,
    dependent: bool = False,
) -> Linear:
    """What every linear layer has, for a weight of `rows` rows."""
    return Linear(
        x=pointer(x),
        bias=pointer(bias),
        residual=pointer(residual),
        y=pointer(y),
        x_stride=x.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        tokens=len(x),
        rows=rows,
        columns=x.shape[1],
        value_type=0 if x.dtype == torch.bfloat16 else 1,
        gate_up=gate_up,
        silu_and_mul=silu_and_mul,
        dependent=dependent,
    )


def skinny_arguments(
    x: Tensor,
    weight: Fragment24,
    y: Tensor,
    tiling: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu_and_mul: bool = False,
    dependent: bool = False,
    cluster: int = 1,
    lead: int = 0,
    ahead: int = 0,
) -> Skinny:
    """`tiling`: warps, row tiles, stages, blocks."""
    warps, row_tiles, stages, blocks = tiling
    gate_up = weight.row_order == "gate_up"
    rows = weight.shape[0]
    return Skinny(
        linear_arguments(x, rows, y, bias, residual, gate_up, silu_and_mul, dependent),
        weight=pointer(weight.data),
        warps=warps,
        row_tiles=row_tiles,
        stages=stages,
        cluster=cluster,
        blocks=blocks,
        lead=lead,
        ahead=ahead,
    )


class Emulator:
    """The kernels on a CPU, with the C interface's checks in front of them."""

    skinny_arguments = staticmethod(skinny_arguments)
    unpack_arguments = Unpack24

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.emulation_message.restype = ctypes.c_char_p
        self.functions.secateur_error_text.restype = ctypes.c_char_p
        self.functions.emulate_sparse24_skinny.argtypes = [c_void_p, ctypes.c_int, c_uint64]
        for name in ("index_unit_offset", "index_logical_row"):
            getattr(self.functions, name).restype = c_int64
        self.functions.index_unit_offset.argtypes = [c_int64] * 3
        self.functions.index_logical_row.argtypes = [c_int64, ctypes.c_int, c_int64, ctypes.c_int]
        self.functions.index_expand_group.restype = c_uint64
        self.functions.schedule_slots.restype = c_int64
        self.functions.schedule_fits.argtypes = [c_int64] * 3
        for name in ("nibble", "expand_group"):
            argtypes = [ctypes.c_uint32] * (3 if name == "nibble" else 2)
            getattr(self.functions, f"index_{name}").argtypes = argtypes

    def text(self, code: int) -> str:
        if code == 1:
            return str(self.functions.emulation_message().decode())
        return str(self.functions.secateur_error_text(code).decode())

    def needs(self, arguments: Skinny) -> SkinnyNeeds:
        found = SkinnyNeeds()
        code = self.functions.secateur_sparse24_skinny_needs(
            ctypes.byref(arguments), ctypes.byref(found)
        )
        assert code == 0, self.text(code)
        return found

    def check(self, arguments: Skinny) -> str:
        return self.text(self.functions.secateur_sparse24_skinny_check(ctypes.byref(arguments)))

    def skinny(self, arguments: Skinny, bulk: bool, seed: int) -> None:
        """Run it with a workspace full of NaN, and see that the counters are zero again."""
        needs = self.needs(arguments)
        # Four floats more, for the start may have to move to a multiple of 16 bytes.
        workspace = torch.full((needs.workspace_bytes // 4 + 4,), torch.nan)
        counters = torch.zeros(needs.counter_count + 1, dtype=torch.int32)
        arguments.workspace = workspace.data_ptr() + -workspace.data_ptr() % 16
        arguments.workspace_bytes = needs.workspace_bytes
        arguments.counters, arguments.counter_count = counters.data_ptr(), needs.counter_count
        code = self.functions.emulate_sparse24_skinny(ctypes.byref(arguments), bulk, seed)
        assert code == 0, self.text(code)
        assert not counters.any()

    def unpack(self, arguments: Unpack24) -> str:
        return self.text(self.functions.emulate_unpack24(ctypes.byref(arguments)))


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    return Emulator(build_emulation(compiler))
