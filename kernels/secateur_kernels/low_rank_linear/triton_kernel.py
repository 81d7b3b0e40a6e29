"""The low-rank linear in Triton, for few tokens: y = (x @ down.T) @ up.T in two launches or three.

The first launch computes t = x @ down.T. A thin factor has few rows, so K is split over programs,
and each stores fp32 partial sums. The last multiplies t by up and applies the epilogue. Between the
two the partial sums are added, in order, and t is cut into pieces that matrix instructions take
(`triton_down.py`): by the last launch itself where there is little of it, else by a launch that
does nothing else. Rows of a factor are rows of the matrix instruction. No atomics: the same input
gives the same bits.
"""

from functools import cache
from itertools import accumulate, pairwise

import torch
import triton
from torch import Tensor

from secateur_kernels.low_rank_linear.triton_config import (
    DOWN_TILES,
    FUSED_SPLITS,
    UP_TILES,
    DownTile,
    LowRankTritonConfig,
    UpTile,
)
from secateur_kernels.low_rank_linear.triton_down import cut_kernel, low_rank_down_kernel
from secateur_kernels.low_rank_linear.triton_up import GROUPS_A_LAUNCH, low_rank_up_kernel
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.sparse24_linear.triton_config import default_config as sparse24_config
from secateur_kernels.sparse24_linear.triton_kernel import compile_case_of, launch_partials
from secateur_kernels.testing.compile_case import CompileCase

# Elements of 16 bytes.
_ALIGNMENT = 8
_CUT_BLOCK = 512
INTERPRETED = not isinstance(low_rank_down_kernel, triton.JITFunction)


def launch(
    x: Tensor,
    weight: Packed24 | None,
    down: Tensor,
    up: Tensor,
    group_rows: tuple[int, ...],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: LowRankTritonConfig,
) -> Tensor:
    """Run both kernels on checked arguments, M >= 1 and K >= 1.

    Args:
        x: bf16 or fp16 [M, K], rows contiguous.
        weight: a 2:4 weight S [N, K] whose x @ S.T is added before the epilogue, or None: the
            product in fp32 by a kernel of its own, in front, with its default config.
        down: [G * r, K], contiguous, dtype of x; r divisible by 16.
        up: [N, r], contiguous, dtype of x.
        group_rows: rows of each of the G groups; for silu_and_mul one group, or two equal ones.
        bias: [N], or None.
        residual: [M, output columns], rows contiguous, or None.
        activation: `none`, or `silu_and_mul`: rows are [gate; up].
        config: see `triton_config`.

    Returns:
        [M, N], or [M, N / 2] for silu_and_mul; contiguous, dtype of x.
    """
    base = None
    if weight is not None:
        data, rows, columns, _, _ = weight
        sparse_config = sparse24_config(len(x), rows, columns, _num_sms(x.device))
        base = launch_partials(x, data, rows, columns, weight.gate_up, sparse_config)
    return launch_added(x, down, up, group_rows, bias, residual, activation, config, base)


def launch_added(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: tuple[int, ...],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: LowRankTritonConfig,
    base: Tensor | None,
) -> Tensor:
    """As `launch` with the sum over slots of `base` added before the epilogue.

    Args:
        base: fp32 [slots, M, N], contiguous, columns in logical order, or None.
    """
    hidden = _multiply_by_down(x, down, config)
    slots = 0 if config.cut_first else len(hidden)
    if config.cut_first:
        hidden = _cut(hidden, x.dtype)
    m, rows, rank = len(x), up.shape[0], up.shape[1]
    silu = activation == "silu_and_mul"
    out = x.new_empty((m, rows // 2 if silu else rows))
    stops = [rows // 2] if silu else list(accumulate(group_rows))
    alignment = 1 if any(stop % _ALIGNMENT for stop in stops) else _ALIGNMENT
    with torch.cuda.device_of(x):
        for group in range(0, len(stops), GROUPS_A_LAUNCH):
            some = stops[group : group + GROUPS_A_LAUNCH]
            first = stops[group - 1] if group else 0
            blocks = [_ceil(b - a, config.block_n) for a, b in pairwise([first, *some])]
            some += some[-1:] * (GROUPS_A_LAUNCH - len(some))
            if not sum(blocks):
                continue
            low_rank_up_kernel[(sum(blocks) * _ceil(m, config.block_m),)](
                hidden,
                up,
                out,
                bias,
                residual,
                base,
                m,
                rows,
                rank,
                hidden.shape[2],
                0 if residual is None else residual.stride(0),
                0 if base is None else len(base),
                group,
                first // alignment,
                *(stop // alignment for stop in some),
                SILU=silu,
                ONE_HIDDEN=len(group_rows) == 1,
                ALIGNMENT=alignment,
                INTERPRETED=INTERPRETED,
                SLOTS=slots,
                BLOCK_M=config.block_m,
                BLOCK_N=config.block_n,
                BLOCK_RANK=config.step_rank,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
            )
    return out


def _multiply_by_down(x: Tensor, down: Tensor, config: LowRankTritonConfig) -> Tensor:
    """fp32 [split_k, M, G * r]: x @ down.T over ranges of K, zero for ranges beyond its end."""
    m, (ranks, columns) = len(x), down.shape
    shape = (config.split_k, m, ranks)
    partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    blocks = _ceil(m, config.block_m) * _ceil(ranks, config.block_rank)
    with torch.cuda.device_of(x):
        low_rank_down_kernel[(blocks, config.split_k)](
            x,
            down,
            partials,
            m,
            ranks,
            columns,
            x.stride(0),
            _ceil(_ceil(columns, config.block_k), config.split_k),
            INTERPRETED=INTERPRETED,
            BLOCK_M=config.block_m,
            BLOCK_RANK=config.block_rank,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return partials


@cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _cut(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """Pieces [3, M, G * r] of the sum over slots, in the type that products take."""
    type_ = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    slots, m, ranks = partials.shape
    pieces = torch.empty((3, m, ranks), dtype=type_, device=partials.device)
    with torch.cuda.device_of(partials):
        cut_kernel[(_ceil(m * ranks, _CUT_BLOCK),)](
            partials, pieces, m * ranks, slots, BF16=type_ == torch.bfloat16, BLOCK=_CUT_BLOCK
        )
    return pieces


def _ceil(size: int, part: int) -> int:
    return -(-size // part)


def ahead_of_time_cases() -> list[CompileCase]:
    """Every tile of both products, the second with the whole epilogue and two groups."""
    cases = [_down_case(tile, "bf16") for tile in DOWN_TILES]
    for tile in UP_TILES:
        most_slots = 0 if tile.cut_first else max(FUSED_SPLITS)
        for slots in (0,) if tile.cut_first else FUSED_SPLITS:
            cases.append(_up_case(tile, "bf16", slots, silu=True))
        cases.append(_up_case(tile, "fp16", most_slots, silu=True))
    cases.append(_up_case(UP_TILES[0], "bf16", 4, silu=False, aligned=False))
    return [*cases, _cut_case("bf16")]


def _down_case(tile: DownTile, dtype: str) -> CompileCase:
    return compile_case_of(
        f"low_rank_linear down {dtype}, {tile.tokens} x {tile.ranks} x {tile.columns}",
        low_rank_down_kernel,
        {"x": f"*{dtype}", "down": f"*{dtype}", "partials": "*fp32"},
        ("ranks", "columns", "x_stride"),
        ("m", "blocks_per_split"),
        {
            "INTERPRETED": False,
            "BLOCK_M": tile.tokens,
            "BLOCK_RANK": tile.ranks,
            "BLOCK_K": tile.columns,
        },
        num_warps=4,
        num_stages=tile.stages,
    )


def _up_case(tile: UpTile, dtype: str, slots: int, silu: bool, aligned: bool = True) -> CompileCase:
    """With silu two groups, bias, residual and base, without it none of them."""
    pieces = f"*{dtype}" if tile.cut_first and dtype == "bf16" else "*fp32"
    optional = f"*{dtype}" if silu else None
    groups = ("first_group", "first", "stop0", "stop1", "stop2", "stop3")
    sizes = ("rank", "ranks")
    rows = ("rows", "residual_stride")
    parts = [f"low_rank_linear up {dtype}", f"{tile.tokens} x {tile.features} x {tile.ranks}"]
    parts += [f"{slots} slots" if slots else "pieces"] + ["silu"] * silu
    return compile_case_of(
        ", ".join(parts + ["unaligned"] * (not aligned)),
        low_rank_up_kernel,
        {
            "hidden": pieces,
            "up": f"*{dtype}",
            "out": f"*{dtype}",
            "bias": optional,
            "residual": optional,
            "base": "*fp32" if silu else None,
        },
        (*sizes, *rows) if aligned else sizes,
        ("m", "base_slots", *groups) if aligned else (*rows, "m", "base_slots", *groups),
        {
            "SILU": silu,
            "ONE_HIDDEN": not silu,
            "ALIGNMENT": _ALIGNMENT if aligned else 1,
            "INTERPRETED": False,
            "SLOTS": slots,
            "BLOCK_M": tile.tokens,
            "BLOCK_N": tile.features,
            "BLOCK_RANK": tile.ranks,
        },
        num_warps=4,
        num_stages=tile.stages,
    )


def _cut_case(dtype: str) -> CompileCase:
    return compile_case_of(
        f"low_rank_linear cut {dtype}",
        cut_kernel,
        {"partials": "*fp32", "pieces": "*bf16" if dtype == "bf16" else "*fp32"},
        ("size",),
        ("slots",),
        {"BF16": dtype == "bf16", "BLOCK": _CUT_BLOCK},
        num_warps=4,
        num_stages=2,
    )
