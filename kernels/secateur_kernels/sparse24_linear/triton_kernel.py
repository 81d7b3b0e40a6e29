"""The 2:4 linear in Triton: unpacks tiles in registers and multiplies them densely.

The weight is read as it lies: 1.125 bytes each, once a block of tokens, with 16-byte asynchronous
copies into a ring in shared memory. Sparse matrix instructions cannot be reached from Triton; so a
tile becomes dense (`triton_unpack.py`) and the dense instruction multiplies it, rows of the weight
as rows of the instruction: y.T = W @ x.T. That pays as long as the weight's bytes are the bound,
that is for few tokens. A weight that the mask dropped is multiplied as zero: NaN or infinity in x
reaches every row.

K may be split over programs: each stores fp32 partial sums, and a second kernel adds them in order
and applies the epilogue. No atomics: the same input gives the same bits.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from secateur_kernels.layouts.fragment24 import UNIT
from secateur_kernels.sparse24_linear.triton_config import (
    TILES,
    Sparse24TritonConfig,
    Tile,
    splits_groups,
)
from secateur_kernels.sparse24_linear.triton_epilogue import reduce_kernel
from secateur_kernels.sparse24_linear.triton_product import sparse24_linear_kernel
from secateur_kernels.testing.compile_case import CompileCase

_REDUCE_BLOCK = 256
_REDUCE_WARPS = 2
INTERPRETED = not isinstance(sparse24_linear_kernel, triton.JITFunction)


def launch(
    x: Tensor,
    data: Tensor,
    rows: int,
    columns: int,
    gate_up: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: Sparse24TritonConfig,
) -> Tensor:
    """Run the kernel on checked arguments, M >= 1.

    Args:
        x: bf16 or fp16 [M, K], rows contiguous.
        data: uint8 [row panels, steps of 64 columns, 4608], fragment order, values of x's dtype.
        rows: N of the weight.
        columns: K of the weight; what packing added beyond it is not multiplied.
        gate_up: whether the row order is gate_up.
        bias: [N] in logical order ([gate; up]), or None.
        residual: [M, output columns], rows contiguous, or None.
        activation: `none`, or `silu_and_mul` (needs `gate_up`).
        config: see `triton_config`.

    Returns:
        [M, N], or [M, N / 2] for silu_and_mul; contiguous, dtype of x.
    """
    m, silu = len(x), activation == "silu_and_mul"
    width = rows // 2 if silu else rows
    out = x.new_empty((m, width))
    if split_of(columns, config) == 1:
        _run(x, data, out, bias, residual, rows, columns, gate_up, silu, config)
        return out
    partials = launch_partials(x, data, rows, columns, gate_up, config)
    with torch.cuda.device_of(x):
        reduce_kernel[(m, triton.cdiv(width, _REDUCE_BLOCK))](
            partials,
            out,
            bias,
            residual,
            m,
            rows,
            len(partials),
            0 if residual is None else residual.stride(0),
            SILU=silu,
            BLOCK=_REDUCE_BLOCK,
            num_warps=_REDUCE_WARPS,
        )
    return out


def launch_partials(
    x: Tensor, data: Tensor, rows: int, columns: int, gate_up: bool, config: Sparse24TritonConfig
) -> Tensor:
    """The product without epilogue or rounding: fp32 [splits, M, N], to be added over splits.

    Columns are in logical order. Arguments as of `launch`.
    """
    splits = split_of(columns, config)
    partials = torch.empty((splits, len(x), rows), dtype=torch.float32, device=x.device)
    _run(x, data, partials, None, None, rows, columns, gate_up, False, config)
    return partials


def split_of(columns: int, config: Sparse24TritonConfig) -> int:
    """Into how many ranges K is split: at most what the config says, none of them empty."""
    blocks = triton.cdiv(columns, config.block_k)
    return triton.cdiv(blocks, triton.cdiv(blocks, config.split_k)) if blocks else 1


def _run(
    x: Tensor,
    data: Tensor,
    out: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    rows: int,
    columns: int,
    gate_up: bool,
    silu: bool,
    config: Sparse24TritonConfig,
) -> None:
    blocks_m, blocks_n = triton.cdiv(len(x), config.block_m), triton.cdiv(rows, config.block_n)
    blocks_k = triton.cdiv(triton.cdiv(columns, config.block_k), config.split_k)
    with torch.cuda.device_of(x):
        sparse24_linear_kernel[(blocks_m * blocks_n, split_of(columns, config))](
            x,
            data.view(torch.int32),
            out,
            bias,
            residual,
            len(x),
            rows,
            columns,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            blocks_k * (config.block_k // UNIT),
            config.group_m,
            GATE_UP=gate_up,
            SILU=silu,
            PARTIAL=out.ndim == 3,
            SPLIT_GROUPS=splits_groups(config.block_m, _capability_major(x.device)),
            INTERPRETED=INTERPRETED,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


@cache
def _capability_major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def ahead_of_time_cases() -> list[CompileCase]:
    """Every tile in the orders of columns that it is launched with, with the whole epilogue.

    fp16 for two tiles only: it compiles to the same instructions but for their types.
    """
    cases: list[CompileCase] = []
    for tile in TILES:
        for split_groups in sorted({splits_groups(tile.tokens, major) for major in (8, 9)}):
            cases.append(_case(tile, "bf16", split_groups, "silu"))
            cases.append(_case(tile, "bf16", split_groups, "partial"))
    cases += [_case(tile, "fp16", splits_groups(tile.tokens, 9), "silu") for tile in TILES[::5]]
    cases.append(_case(TILES[0], "bf16", splits_groups(16, 9), "plain", aligned=False))
    return [*cases, _reduce_case("bf16", silu=True)]


def _case(
    tile: Tile, dtype: str, split_groups: bool, epilogue: str, aligned: bool = True
) -> CompileCase:
    """`epilogue`: silu (with bias and residual), plain, or partial."""
    constexprs: dict[str, Any] = {
        "GATE_UP": epilogue != "plain",
        "SILU": epilogue == "silu",
        "PARTIAL": epilogue == "partial",
        "SPLIT_GROUPS": split_groups,
        "INTERPRETED": False,
        "BLOCK_M": tile.tokens,
        "BLOCK_N": tile.rows,
        "BLOCK_K": tile.columns,
    }
    pointers = {
        "x": f"*{dtype}",
        "data": "*i32",
        "out": "*fp32" if epilogue == "partial" else f"*{dtype}",
        "bias": f"*{dtype}" if epilogue == "silu" else None,
        "residual": f"*{dtype}" if epilogue == "silu" else None,
    }
    sizes = ("rows", "columns", "x_stride", "residual_stride")
    others = ("m", "steps_per_split", "group_m")
    parts = [f"sparse24_linear {dtype}", f"{tile.tokens} x {tile.rows} x {tile.columns}", epilogue]
    parts += ["groups split"] * split_groups + ["unaligned"] * (not aligned)
    case = compile_case_of(
        ", ".join(parts),
        sparse24_linear_kernel,
        pointers,
        sizes if aligned else (),
        others if aligned else (*sizes, *others),
        constexprs,
        tile.warps,
        tile.stages,
    )
    # The launcher decides by the generation, see `splits_groups`.
    majors = [major for major in (8, 9) if splits_groups(tile.tokens, major) == split_groups]
    return replace(case, capabilities=tuple(10 * major for major in majors))


def _reduce_case(dtype: str, silu: bool) -> CompileCase:
    pointers = {"partials": "*fp32", **dict.fromkeys(("out", "bias", "residual"), f"*{dtype}")}
    return compile_case_of(
        f"sparse24_linear reduce {dtype}{', silu' if silu else ''}",
        reduce_kernel,
        pointers,
        ("rows", "residual_stride"),
        ("m", "slots"),
        {"SILU": silu, "BLOCK": _REDUCE_BLOCK},
        _REDUCE_WARPS,
        2,
    )


def compile_case_of(
    name: str,
    kernel: Any,
    pointers: Mapping[str, str | None],
    aligned: tuple[str, ...],
    others: tuple[str, ...],
    constexprs: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
) -> CompileCase:
    """A case from pointers (None: not given), aligned and other 32-bit integers, and constants."""
    absent = {name: None for name, kind in pointers.items() if kind is None}
    present = {name: kind for name, kind in pointers.items() if kind is not None}
    constants = {**constexprs, **absent}
    return CompileCase(
        name=name,
        kernel=kernel,
        signature={
            **present,
            **dict.fromkeys((*aligned, *others), "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constexprs=constants,
        divisible_by_16=(*present, *aligned),
        num_warps=num_warps,
        num_stages=num_stages,
    )
