"""Score, select and pack in one pass over the weight: the Triton kernel and its launch.

It is bound by memory as long as it does little arithmetic: 2 bytes in and 1.125 out a weight leave
about 40 integer instructions a group of four at an H200's rates. Hence 64-bit words for groups and
four comparisons instead of six (`selection.py`).

The tile is 16 x 256 (`config.py`):
- a warp loads a whole row of it, 16 bytes a lane, 512 contiguous bytes: four full lines;
- it is four sub-tiles of fragment order, 1152 bytes each, that start at multiples of 128 bytes: no
  other program writes to their lines. A warp stores a fragment's 512 bytes of values, 16 a lane;
- between the two, kept pairs change places between threads, 4 bytes a group, through 4 KB of shared
  memory: less than through any other point of the way, and little enough for full occupancy;
- of the canonical order, a row of the tile is 256 bytes of values and 32 of indices: full sectors.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateur_kernels.layouts.fragment24 import SUB_TILE_BYTES, UNIT, UNIT_BYTES
from secateur_kernels.pack24.config import Pack24TritonConfig
from secateur_kernels.pack24.request import Packed, Request
from secateur_kernels.pack24.selection import as_fp32, choose, columns_of, halves, pick
from secateur_kernels.testing.compile_case import CompileCase

_UNIT_WORDS = tl.constexpr(UNIT_BYTES // 4)
_SUB_TILE_WORDS = tl.constexpr(SUB_TILE_BYTES // 4)
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _four(
    low: tl.tensor, high: tl.tensor, TYPE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Four 16-bit numbers of a group as fp32."""
    c0, c1, c2, c3 = columns_of(low, high)
    return as_fp32(c0, TYPE), as_fp32(c1, TYPE), as_fp32(c2, TYPE), as_fp32(c3, TYPE)


@triton.jit
def _four_fp32(
    words: tl.tensor, offsets: tl.tensor, inside: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four numbers of groups in an fp32 matrix, of which a group is two 64-bit words."""
    both = (2 * offsets)[:, :, None] + tl.arange(0, 2)[None, None, :]
    left, right = tl.split(tl.load(words + both, mask=inside[:, :, None], other=0))
    b0, b1 = halves(left)
    b2, b3 = halves(right)
    s0, s1 = as_fp32(b0, tl.float32), as_fp32(b1, tl.float32)
    return s0, s1, as_fp32(b2, tl.float32), as_fp32(b3, tl.float32)


@triton.jit
def _store_fragments(
    data: tl.tensor,
    pairs: tl.tensor,
    nibbles: tl.tensor,
    steps: tl.tensor,
    tile_row: tl.tensor,
    tile: tl.tensor,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """A tile in fragment order: pairs of kept values, and index pairs (times 16)."""
    SUB_TILES: tl.constexpr = ROWS // 16
    FRAGMENTS: tl.constexpr = GROUPS // 8
    unit_row = tile_row * SUB_TILES // 4
    panel = data + unit_row.to(tl.int64) * steps * _UNIT_WORDS
    first = panel + tile * (GROUPS // 16) * _UNIT_WORDS + tile_row * SUB_TILES % 4 * _SUB_TILE_WORDS

    # sub-tile, row half, q, fragment, column half, t -> a fragment's lanes (q, t) and registers
    split = tl.reshape(pairs, (SUB_TILES, 2, 8, FRAGMENTS, 2, 4))
    lanes = tl.reshape(tl.permute(split, (0, 3, 2, 5, 4, 1)), (SUB_TILES * FRAGMENTS, 128))
    index = tl.arange(0, SUB_TILES * FRAGMENTS)
    fragment = index % FRAGMENTS
    start = index // FRAGMENTS * _SUB_TILE_WORDS + fragment // 2 * _UNIT_WORDS + fragment % 2 * 128
    tl.store(
        first + start[:, None] + tl.arange(0, 128)[None, :],
        lanes,
        mask=(tile * (GROUPS // 16) + fragment // 2 < steps)[:, None],
    )

    # Four groups a 16-bit half of a metadata word, and rows q and q + 8 in one word.
    shifts = 4 * (tl.arange(0, GROUPS) % 4)
    four = tl.sum(tl.reshape(nibbles << shifts[None, :], (ROWS, GROUPS // 4, 4)), axis=2) >> 4
    shifts = 16 * (tl.arange(0, ROWS) // 8 % 2)
    both = tl.reshape(four << shifts[:, None], (SUB_TILES, 2, 8, GROUPS // 4))
    metadata = tl.reshape(tl.sum(both, axis=1), (SUB_TILES * 8, GROUPS // 4))
    row = tl.arange(0, SUB_TILES * 8)
    half = tl.arange(0, GROUPS // 4)
    place = row // 8 * _SUB_TILE_WORDS + 256 + row % 8 * 4
    tl.store(
        first + place[:, None] + (half // 4 * _UNIT_WORDS + half % 4)[None, :],
        metadata,
        mask=(tile * (GROUPS // 16) + half // 4 < steps)[None, :],
    )


@triton.jit
def pack24_kernel(
    weight: tl.tensor,
    score: tl.tensor,
    input_norm: tl.tensor,
    keep_mask: tl.tensor,
    mask_out: tl.tensor,
    values_out: tl.tensor,
    indices_out: tl.tensor,
    data_out: tl.tensor,
    rows: tl.tensor,
    groups: tl.tensor,
    weight_stride: tl.tensor,
    score_stride: tl.tensor,
    keep_stride: tl.tensor,
    steps: tl.tensor,
    tiles: tl.tensor,
    one: tl.tensor,
    WEIGHT: tl.constexpr,
    SCORE: tl.constexpr,
    GATE_UP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """One tile [ROWS, 4 * GROUPS], from scores to bytes.

    Args:
        weight: int64 words [N, K / 4] of four 16-bit weights, or [N, K / 2] of two fp32.
        score: the same of given scores, or None.
        input_norm: int64 words [K / 2] of two fp32, or None.
        keep_mask: int32 words [N, K / 4] of four booleans, or None.
        mask_out: as `keep_mask`; it and the following are None where not wanted.
        values_out: int32 words [N, K / 4] of two kept values.
        indices_out: uint8 [N, ceil(K / 8)].
        data_out: int32 words of fragment order.
        rows: N.
        groups: K / 4.
        weight_stride: of a row, in groups, as the other strides.
        score_stride: of a row.
        keep_stride: of a row.
        steps: of 64 columns, rounded up.
        tiles: in a row of tiles.
        one: 1.0. Magnitudes are then those of products, which comparisons take for nothing; sign
            bits would be cleared by integer instructions, of which there are enough.
        WEIGHT: Triton type of the weights.
        SCORE: of the scores.
        GATE_UP: whether the row order is gate_up.
        ROWS: of a tile, 16, 32 or 64.
        GROUPS: of a tile, a power of two from 16 on.
    """
    tile_row = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    packed_row = tile_row * ROWS + tl.arange(0, ROWS)
    row = packed_row
    if GATE_UP:
        row = packed_row // 8 % 2 * (rows // 2) + packed_row // 16 * 8 + packed_row % 8
    group = tile * GROUPS + tl.arange(0, GROUPS)
    # Beyond the weight everything is zero, and columns 0 and 1 win: just what padding holds.
    inside = (packed_row < rows)[:, None] & (group < groups)[None, :]
    long_row = row.to(tl.int64)[:, None]

    FROM_WEIGHT: tl.constexpr = (score is None) and (keep_mask is None)
    PACKS: tl.constexpr = (values_out is not None) or (data_out is not None)
    offsets = long_row * weight_stride + group[None, :]
    if PACKS or (FROM_WEIGHT and WEIGHT != tl.float32):
        low, high = halves(tl.load(weight + offsets, mask=inside, other=0))
    if keep_mask is not None:
        kept = tl.load(keep_mask + long_row * keep_stride + group[None, :], mask=inside, other=0)
        s0, s1, s2, s3 = kept & 1, (kept >> 8) & 1, (kept >> 16) & 1, (kept >> 24) & 1
        if PACKS:
            # What fills up a group that keeps fewer than two is stored as zero.
            low &= (-s0 & 65535) | (-s1 << 16)
            high &= (-s2 & 65535) | (-s3 << 16)
    elif score is not None:
        offsets = long_row * score_stride + group[None, :]
        if SCORE == tl.float32:
            s0, s1, s2, s3 = _four_fp32(score, offsets, inside)
        else:
            score_low, score_high = halves(tl.load(score + offsets, mask=inside, other=0))
            s0, s1, s2, s3 = _four(score_low, score_high, SCORE)
    else:
        if WEIGHT == tl.float32:
            w0, w1, w2, w3 = _four_fp32(weight, offsets, inside)
        else:
            w0, w1, w2, w3 = _four(low, high, WEIGHT)
        n0, n1, n2, n3 = one, one, one, one
        if input_norm is not None:
            n0, n1 = halves(tl.load(input_norm + 2 * group, mask=group < groups, other=0))
            n2, n3 = halves(tl.load(input_norm + 2 * group + 1, mask=group < groups, other=0))
            n0, n1 = as_fp32(n0, tl.float32)[None, :], as_fp32(n1, tl.float32)[None, :]
            n2, n3 = as_fp32(n2, tl.float32)[None, :], as_fp32(n3, tl.float32)[None, :]
        s0, s1, s2, s3 = tl.abs(w0 * n0), tl.abs(w1 * n1), tl.abs(w2 * n2), tl.abs(w3 * n3)
    first_left, first_right, both_left, both_right = choose(s0, s1, s2, s3)

    if mask_out is not None:
        mixed = tl.where(first_left, 1, 1 << 8) | tl.where(first_right, 1 << 16, 1 << 24)
        mask = pick(both_left, both_right, 0x00000101, 0x01010000, mixed)
        tl.store(mask_out + long_row * groups + group[None, :], mask, mask=inside)
    if PACKS:
        c0, c1, c2, c3 = columns_of(low, high)
        left = tl.where(first_left, c0, c1)
        mixed = ((left >> 16) & 65535) | tl.where(first_right, c2, c3)
        pairs = pick(both_left, both_right, low, high, mixed)
        # Index pairs, lower column plus four times the higher, in bits 4 to 7.
        mixed = tl.where(first_left, 0x80, 0x90) + tl.where(first_right, 0, 0x40)
        nibbles = pick(both_left, both_right, 0x40, 0xE0, mixed)
        if input_norm is not None:
            # Rows beyond the weight, times an infinite norm, are NaN.
            nibbles = tl.where((packed_row < rows)[:, None], nibbles, 0x40)
    if values_out is not None:
        tl.store(values_out + long_row * groups + group[None, :], pairs, mask=inside)
        even, odd = tl.split(tl.reshape(nibbles, (ROWS, GROUPS // 2, 2)))
        byte = tile * (GROUPS // 2) + tl.arange(0, GROUPS // 2)
        num_bytes = (groups + 1) // 2
        tl.store(
            indices_out + long_row * num_bytes + byte[None, :],
            ((even >> 4) | odd).to(tl.uint8),
            mask=(packed_row < rows)[:, None] & (byte < num_bytes)[None, :],
        )
    if data_out is not None:
        _store_fragments(data_out, pairs, nibbles, steps, tile_row, tile, ROWS, GROUPS)


def launch(request: Request, config: Pack24TritonConfig | None = None) -> Packed:
    """Run the kernel on checked arguments.

    Args:
        request: on one device; N and K are not zero.
        config: how to cut the weight; the default where None.
    """
    config = config or Pack24TritonConfig()
    rows, columns = request.weight.shape
    packed = request.allocate()
    weight, weight_stride = _words(request.weight)
    score, score_stride = _words(request.score)
    kept, keep_stride = _words(request.keep_mask)
    norm, _ = _words(None if request.input_norm is None else request.input_norm[None])
    steps = -(-columns // UNIT)
    tiles = triton.cdiv(UNIT * steps, config.columns)
    padded_rows = -(-rows // UNIT) * UNIT if request.want_fragment else rows
    grid = (tiles * triton.cdiv(padded_rows, config.rows),)
    with torch.cuda.device_of(request.weight):
        pack24_kernel[grid](
            weight,
            score,
            norm,
            kept,
            packed.mask.view(torch.int32) if request.want_mask else None,
            packed.values.view(torch.int32) if request.want_canonical else None,
            packed.indices if request.want_canonical else None,
            packed.data.view(torch.int32) if request.want_fragment else None,
            rows,
            columns // 4,
            weight_stride,
            score_stride,
            keep_stride,
            steps,
            tiles,
            1.0,
            WEIGHT=_TYPES[request.weight.dtype],
            SCORE=_TYPES[request.weight.dtype if request.score is None else request.score.dtype],
            GATE_UP=request.gate_up,
            ROWS=config.rows,
            GROUPS=config.columns // 4,
            num_warps=config.num_warps,
        )
    return packed


def _words(matrix: Tensor | None) -> tuple[Tensor | None, int]:
    """A matrix [N, K] as words of a group (fp32: of half a group), and a row's stride in groups.

    A group of booleans is an int32, any other an int64 (two for fp32). Copies where groups do not
    start at multiples of their size.
    """
    if matrix is None:
        return None, 0
    word = torch.int32 if matrix.dtype == torch.bool else torch.int64
    ratio = word.itemsize // matrix.element_size()
    row_stride, column_stride = matrix.stride()
    aligned = row_stride % 4 == 0 and matrix.data_ptr() % word.itemsize == 0
    if column_stride != 1 or not aligned or matrix.storage_offset() % ratio:
        # Not contiguous(), which leaves a single row as it is.
        matrix = matrix.clone(memory_format=torch.contiguous_format)
    return matrix.view(word), matrix.stride(0) // 4


def ahead_of_time_cases() -> list[CompileCase]:
    """Every source of scores, every type, every form, in combinations that meet them all."""
    every = ("mask", "canonical", "fragment")
    cases = []
    for dtype in (tl.bfloat16, tl.float16):
        cases += [
            _case(dtype, "magnitude", ("fragment",)),
            _case(dtype, "input_norm", ("fragment",), gate_up=True),
            _case(dtype, "input_norm", every, aligned=False),
        ]
    return [
        *cases,
        _case(tl.bfloat16, "input_norm", every),
        _case(tl.bfloat16, "score", ("mask",), score=tl.float16),
        _case(tl.bfloat16, "score", every, score=tl.float32),
        _case(tl.bfloat16, "keep_mask", ("canonical", "fragment"), gate_up=True),
        _case(tl.float32, "input_norm", ("mask",)),
    ]


def _case(
    dtype: Any,
    source: str,
    want: tuple[str, ...],
    score: Any = None,
    gate_up: bool = False,
    aligned: bool = True,
) -> CompileCase:
    config = Pack24TritonConfig()
    pointers = {
        "weight": ("*i64", True),
        "score": ("*i64", source == "score"),
        "input_norm": ("*i64", source == "input_norm"),
        "keep_mask": ("*i32", source == "keep_mask"),
        "mask_out": ("*i32", "mask" in want),
        "values_out": ("*i32", "canonical" in want),
        "indices_out": ("*u8", "canonical" in want),
        "data_out": ("*i32", "fragment" in want),
    }
    sizes = ("groups", "weight_stride", "score_stride", "keep_stride")
    others = {"rows": "i32", **dict.fromkeys(sizes, "i32"), "steps": "i32", "tiles": "i32"}
    constexprs = {
        **{name: None for name, (_, used) in pointers.items() if not used},
        "WEIGHT": dtype,
        "SCORE": dtype if score is None else score,
        "GATE_UP": gate_up,
        "ROWS": config.rows,
        "GROUPS": config.columns // 4,
    }
    signature = {
        **{name: kind for name, (kind, _) in pointers.items()},
        **others,
        "one": "fp32",
        **dict.fromkeys(constexprs, "constexpr"),
    }
    used = tuple(name for name, (_, is_used) in pointers.items() if is_used)
    parts = [f"pack24 {dtype}", source, "+".join(want)]
    parts += [f"score {score}"] * (score is not None) + ["gate_up"] * gate_up
    parts += ["unaligned"] * (not aligned)
    return CompileCase(
        name=", ".join(parts),
        kernel=pack24_kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=used + (sizes if aligned else ()),
        num_warps=config.num_warps,
    )
