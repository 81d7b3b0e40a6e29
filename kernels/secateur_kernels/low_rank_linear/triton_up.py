"""The second product of the low-rank linear in Triton: t @ up.T, t in fp32, and the epilogue."""

import triton
import triton.language as tl

from secateur_kernels.low_rank_linear.triton_down import cut
from secateur_kernels.sparse24_linear.triton_epilogue import (
    add_bias,
    silu_and_mul,
    store_tile,
    sum_slots,
)

GROUPS_A_LAUNCH = 4
"""How many groups `low_rank_up_kernel` has arguments for."""

# Numbers for which no compilation of their own is worth it.
_CHANGING = ["m", "base_slots", "first_group", "first", "stop0", "stop1", "stop2", "stop3"]


@triton.jit(do_not_specialize=_CHANGING)
def low_rank_up_kernel(
    hidden: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    base: tl.tensor,
    m: tl.tensor,
    rows: tl.tensor,
    rank: tl.tensor,
    ranks: tl.tensor,
    residual_stride: tl.tensor,
    base_slots: tl.tensor,
    first_group: tl.tensor,
    first: tl.tensor,
    stop0: tl.tensor,
    stop1: tl.tensor,
    stop2: tl.tensor,
    stop3: tl.tensor,
    SILU: tl.constexpr,
    ONE_HIDDEN: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """A tile of y, all of it within one of four groups of features.

    `hidden` is t = x @ down.T: pieces [3, M, ranks] (SLOTS is 0; see `triton_down`), or fp32
    partial sums [SLOTS, M, ranks], which every program then adds and cuts for itself.

    With SILU features are those of the output, gate rows belong to group 0 and up rows to group 0
    (ONE_HIDDEN) or 1. Features (first, stop0 to stop3) count in units of ALIGNMENT, so that the
    compiler knows how wide it may store.
    """
    blocks0 = tl.cdiv((stop0 - first) * ALIGNMENT, BLOCK_N)
    blocks1 = blocks0 + tl.cdiv((stop1 - stop0) * ALIGNMENT, BLOCK_N)
    blocks2 = blocks1 + tl.cdiv((stop2 - stop1) * ALIGNMENT, BLOCK_N)
    blocks3 = blocks2 + tl.cdiv((stop3 - stop2) * ALIGNMENT, BLOCK_N)
    # One dimension for both: CUDA allows 65535 programs along the others.
    block = tl.program_id(0) % blocks3
    past0, past1, past2 = block >= blocks0, block >= blocks1, block >= blocks2
    group = first_group + past0.to(tl.int32) + past1.to(tl.int32) + past2.to(tl.int32)
    block -= _pick(past0, past1, past2, 0, blocks0, blocks1, blocks2)
    start = _pick(past0, past1, past2, first, stop0, stop1, stop2)
    stop = _pick(past0, past1, past2, stop0, stop1, stop2, stop3)

    feature = start * ALIGNMENT + block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = feature < stop * ALIGNMENT
    token = tl.program_id(0) // blocks3 * BLOCK_M + tl.arange(0, BLOCK_M)
    token_inside = token < m
    step = tl.arange(0, BLOCK_RANK)
    width = rows // 2 if SILU else rows
    weights = up + feature.to(tl.int64)[:, None] * rank + step[None, :]
    hidden += token.to(tl.int64)[:, None] * ranks + (group * rank + step)[None, :]
    slot_stride = m.to(tl.int64) * ranks
    acc = _start(base, base_slots, feature, token, m, rows, inside, BLOCK_N, BLOCK_M)
    if SILU:
        other_weights = weights + width.to(tl.int64) * rank
        other_feature = width + feature
        other = _start(base, base_slots, other_feature, token, m, rows, inside, BLOCK_N, BLOCK_M)
    for at in range(0, rank, BLOCK_RANK):
        rank_inside = (at + step < rank)[None, :]
        weight = tl.load(weights + at, mask=inside[:, None] & rank_inside, other=0.0)
        mask = token_inside[:, None] & rank_inside
        if SILU:
            other_weight = tl.load(
                other_weights + at, mask=inside[:, None] & rank_inside, other=0.0
            )
        if SLOTS == 0:
            for index in tl.static_range(3):
                piece = tl.load(hidden + (index * slot_stride + at), mask=mask, other=0.0)
                acc = _dot(weight, piece, acc, INTERPRETED)
                if SILU:
                    if not ONE_HIDDEN:
                        places = hidden + (index * slot_stride + rank + at)
                        piece = tl.load(places, mask=mask, other=0.0)
                    other = _dot(other_weight, piece, other, INTERPRETED)
        else:
            rest = _add_slots(hidden + at, slot_stride, mask, SLOTS)
            if SILU and not ONE_HIDDEN:
                other_rest = _add_slots(hidden + (rank + at), slot_stride, mask, SLOTS)
            for _ in tl.static_range(3):
                piece, rest = cut(rest, weight.dtype == tl.bfloat16)
                acc = _dot(weight, piece, acc, INTERPRETED)
                if SILU:
                    if not ONE_HIDDEN:
                        piece, other_rest = cut(other_rest, weight.dtype == tl.bfloat16)
                    other = _dot(other_weight, piece, other, INTERPRETED)
    acc = add_bias(acc, bias, feature, inside)
    if SILU:
        acc = silu_and_mul(acc, add_bias(other, bias, other_feature, inside))
    store_tile(out, acc, residual, feature, token, width, m, residual_stride, inside)


@triton.jit
def _pick(
    past0: tl.tensor,
    past1: tl.tensor,
    past2: tl.tensor,
    value0: tl.tensor,
    value1: tl.tensor,
    value2: tl.tensor,
    value3: tl.tensor,
) -> tl.tensor:
    """The value of the last span whose start is passed."""
    value = tl.where(past1, value2, tl.where(past0, value1, value0))
    return tl.where(past2, value3, value)


@triton.jit
def _start(
    base: tl.tensor,
    base_slots: tl.tensor,
    feature: tl.tensor,
    token: tl.tensor,
    m: tl.tensor,
    rows: tl.tensor,
    inside: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """What the sum starts from: the sum over slots of base [slots, M, N], or zero."""
    if base is None:
        return tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        places = token.to(tl.int64)[None, :] * rows + feature[:, None]
        mask = inside[:, None] & (token < m)[None, :]
        return sum_slots(base + places, base_slots, m.to(tl.int64) * rows, mask)


@triton.jit
def _add_slots(
    first: tl.tensor, stride: tl.tensor, mask: tl.tensor, SLOTS: tl.constexpr
) -> tl.tensor:
    """Sum of SLOTS tiles of fp32, in order."""
    total = tl.load(first, mask=mask, other=0.0)
    for slot in tl.static_range(1, SLOTS):
        total += tl.load(first + slot * stride, mask=mask, other=0.0)
    return total


@triton.jit
def _dot(
    weight: tl.tensor, piece: tl.tensor, acc: tl.tensor, INTERPRETED: tl.constexpr
) -> tl.tensor:
    """acc + weight [N, r] @ piece [M, r].T for a piece that the instruction holds exactly."""
    if INTERPRETED:
        # NumPy has no bf16.
        acc += tl.dot(weight.to(tl.float32), tl.trans(piece.to(tl.float32)))
    elif weight.dtype == tl.bfloat16:
        acc = tl.dot(weight, tl.trans(piece.to(tl.bfloat16)), acc)
    else:
        acc = tl.dot(weight.to(tl.float32), tl.trans(piece), acc, input_precision="tf32")
    return acc
