"""The product of the 2:4 linear in Triton: one tile of y from packed weights."""

import triton
import triton.language as tl

from secateur_kernels.layouts.fragment24 import SUB_TILE_BYTES, UNIT_BYTES
from secateur_kernels.sparse24_linear.triton_epilogue import add_bias, silu_and_mul, store_tile
from secateur_kernels.sparse24_linear.triton_unpack import column_order, unpack_tile

_UNIT_WORDS = tl.constexpr(UNIT_BYTES // 4)
_SUB_TILE_WORDS = tl.constexpr(SUB_TILE_BYTES // 4)


@triton.jit(do_not_specialize=["m", "steps_per_split", "group_m"])
def sparse24_linear_kernel(
    x: tl.tensor,
    data: tl.tensor,
    out: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    m: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    steps_per_split: tl.tensor,
    group_m: tl.tensor,
    GATE_UP: tl.constexpr,
    SILU: tl.constexpr,
    PARTIAL: tl.constexpr,
    SPLIT_GROUPS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One tile of y, or with PARTIAL of the fp32 partial sums [splits, M, N] (no epilogue)."""
    blocks_m = tl.cdiv(m, BLOCK_M)
    blocks_n = tl.cdiv(rows, BLOCK_N)
    group = tl.program_id(0) // (group_m * blocks_n)
    inner = tl.program_id(0) % (group_m * blocks_n)
    group_size = tl.minimum(blocks_m - group * group_m, group_m)
    token = (group * group_m + inner % group_size) * BLOCK_M + tl.arange(0, BLOCK_M)
    block_n = inner // group_size
    split = tl.program_id(1)

    acc = _multiply(
        x,
        data,
        token,
        block_n,
        split,
        m,
        rows,
        columns,
        x_stride,
        steps_per_split,
        SPLIT_GROUPS,
        INTERPRETED,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if SILU:
        halves = tl.permute(tl.reshape(acc, [BLOCK_N // 16, 2, 8, BLOCK_M]), [0, 2, 3, 1])
        gate, up = tl.split(halves)
        feature = block_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        width = rows // 2
        inside = feature < width
        gate = add_bias(tl.reshape(gate, [BLOCK_N // 2, BLOCK_M]), bias, feature, inside)
        up = add_bias(tl.reshape(up, [BLOCK_N // 2, BLOCK_M]), bias, width + feature, inside)
        z = silu_and_mul(gate, up)
        store_tile(out, z, residual, feature, token, width, m, residual_stride, inside)
    else:
        row = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = row < rows
        if GATE_UP:
            row = row // 16 * 8 + row % 8 + row % 16 // 8 * (rows // 2)
            row = tl.max_contiguous(tl.multiple_of(row, 8), 8)
        if PARTIAL:
            out += split.to(tl.int64) * m * rows
        else:
            acc = add_bias(acc, bias, row, inside)
        store_tile(out, acc, residual, row, token, rows, m, residual_stride, inside)


@triton.jit
def _multiply(
    x: tl.tensor,
    data: tl.tensor,
    token: tl.tensor,
    block_n: tl.tensor,
    split: tl.tensor,
    m: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    x_stride: tl.tensor,
    steps_per_split: tl.tensor,
    SPLIT_GROUPS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """fp32 [BLOCK_N, BLOCK_M]: rows of the weight, as packed, times tokens, over a range of K."""
    STEPS: tl.constexpr = BLOCK_K // 64
    SUB_TILES: tl.constexpr = BLOCK_N // 16
    TYPE: tl.constexpr = x.dtype.element_ty
    steps = tl.cdiv(columns, 64)
    first_step = split * steps_per_split
    stop = tl.minimum(first_step + steps_per_split, steps)

    # Fragments before sub-tiles: the compiler then gives sub-tiles to warps, 16 rows a warp, as
    # the matrix instruction does.
    sub_tile = block_n * SUB_TILES + tl.arange(0, SUB_TILES)
    panel = sub_tile // 4
    start = (panel.to(tl.int64) * steps + first_step) * _UNIT_WORDS + sub_tile % 4 * _SUB_TILE_WORDS
    panel_inside = (panel < tl.cdiv(rows, 64))[None, :, None]
    fragment = tl.arange(0, 2 * STEPS)[:, None, None]
    value_place = fragment // 2 * _UNIT_WORDS + fragment % 2 * 128
    step = tl.arange(0, STEPS)[:, None, None]
    values = data + start[None, :, None] + (value_place + tl.arange(0, 128)[None, None, :])
    metadata = data + start[None, :, None] + (step * _UNIT_WORDS + 256)
    metadata += tl.arange(0, 32)[None, None, :]

    column = column_order(STEPS, SPLIT_GROUPS)
    inputs = x + token.to(tl.int64)[:, None] * x_stride + (first_step * 64 + column)[None, :]
    token_inside = (token < m)[:, None]

    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for at in range(first_step, stop, STEPS):
        # Metadata first: the compiler lays out what follows as it finds the last of the two.
        nibbles = tl.load(metadata, mask=panel_inside & (at + step < stop), other=0)
        words = tl.load(values, mask=panel_inside & (at + fragment // 2 < stop), other=0)
        x_inside = token_inside & (at * 64 + column < columns)[None, :]
        x_tile = tl.load(inputs, mask=x_inside, other=0.0)
        weight = unpack_tile(words, nibbles, STEPS, SUB_TILES, SPLIT_GROUPS, TYPE, INTERPRETED)
        if INTERPRETED:
            # NumPy has no bf16.
            acc += tl.dot(weight.to(tl.float32), tl.trans(x_tile.to(tl.float32)))
        else:
            acc = tl.dot(weight, tl.trans(x_tile), acc)
        metadata += STEPS * _UNIT_WORDS
        values += STEPS * _UNIT_WORDS
        inputs += BLOCK_K
    return acc
