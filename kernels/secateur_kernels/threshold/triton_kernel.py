"""The largest scores of every row: the Triton kernel and its launch.

A program finds the threshold of a row by bisection over the scores' bits, as integers of the same
order: at most 32 counts, and fewer where a count hits the wanted number, since then no tie is cut.
A row of up to 32768 is read once and stays in registers, 32 scores a thread; a count is then two
instructions a score and one reduction. (Histograms of digits need four passes only, but in each of
them nearly all scores of a row fall into a few bins, whose counters then take turns.) A longer row
is read again for each count, from the second-level cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateur_kernels.testing.compile_case import CompileCase
from secateur_kernels.threshold.reference import NAN_KEY

_NAN_KEY = tl.constexpr(NAN_KEY)
_OUTSIDE = tl.constexpr(NAN_KEY - 1)
_MAX_KEY = tl.constexpr(2**31 - 1)

_SCORES_PER_WARP = 1024
_WRITTEN_PER_WARP = 256
_MAX_RESIDENT = 32768
# Loads of single scores need more registers for addresses.
_MAX_RESIDENT_UNALIGNED = 16384
_CHUNK = 8192
_CHUNK_WARPS = 16


@triton.jit
def _load_keys(row: tl.tensor, column: tl.tensor, columns: tl.tensor) -> tl.tensor:
    """int32 in the order of the scores, see `reference.ordered_keys`; the lowest beyond the row."""
    score = tl.load(row + column, mask=column < columns, other=0.0)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = tl.where(score == score, keys, _NAN_KEY)
    return tl.where(column < columns, keys, _OUTSIDE)


@triton.jit
def _range_of(
    row: tl.tensor, keys: tl.tensor, columns: tl.tensor, BLOCK: tl.constexpr, RESIDENT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The lowest and the highest key of a row."""
    column = tl.arange(0, BLOCK)
    if RESIDENT:
        low = tl.where(column < columns, keys, _MAX_KEY)
        high = keys
    else:
        low = tl.full((BLOCK,), _MAX_KEY, tl.int32)
        high = tl.full((BLOCK,), _OUTSIDE, tl.int32)
        for start in range(0, columns, BLOCK):
            chunk = _load_keys(row, start + column, columns)
            low = tl.minimum(low, tl.where(start + column < columns, chunk, _MAX_KEY))
            high = tl.maximum(high, chunk)
    return tl.min(low, axis=0), tl.max(high, axis=0)


@triton.jit
def _count(
    row: tl.tensor,
    keys: tl.tensor,
    columns: tl.tensor,
    bound: tl.tensor,
    BLOCK: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> tl.tensor:
    """How many keys of a row are at least `bound`."""
    if RESIDENT:
        counts = (keys >= bound).to(tl.int32)
    else:
        counts = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, columns, BLOCK):
            chunk = _load_keys(row, start + tl.arange(0, BLOCK), columns)
            counts += (chunk >= bound).to(tl.int32)
    return tl.sum(counts, axis=0)


@triton.jit
def _store_mask(
    mask: tl.tensor,
    keys: tl.tensor,
    column: tl.tensor,
    columns: tl.tensor,
    bound: tl.tensor,
    num_above: tl.tensor,
    num_at_least: tl.tensor,
    keep: tl.tensor,
    tied_before: tl.tensor,
) -> tl.tensor:
    """Store the mask of some columns; returns how many ties they hold."""
    num_tied = tied_before
    if num_at_least == keep:
        kept = keys >= bound
    else:
        tied = (keys == bound).to(tl.int32)
        rank = tied_before + tl.cumsum(tied, axis=0)
        kept = (keys > bound) | ((keys == bound) & (rank <= keep - num_above))
        num_tied += tl.sum(tied, axis=0)
    tl.store(mask + column, kept.to(tl.uint8), mask=column < columns)
    return num_tied


@triton.jit
def keep_largest_kernel(
    score: tl.tensor,
    mask: tl.tensor,
    columns: tl.tensor,
    score_stride: tl.tensor,
    keep: tl.tensor,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> None:
    """One row.

    Args:
        score: fp32 [N, K].
        mask: uint8 [N, K], written.
        columns: K.
        score_stride: of a row.
        keep: 0 < keep < K.
        BLOCK: scores counted at once.
        PIECE: scores of which the mask is written at once.
        RESIDENT: whether a block is the whole row.
    """
    row = score + tl.program_id(0).to(tl.int64) * score_stride
    mask += tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    keys = column
    if RESIDENT:
        keys = _load_keys(row, column, columns)

    # `num_low` keys reach `low`, at least `keep`; `num_high` reach `high`, fewer than `keep`.
    low, high = _range_of(row, keys, columns, BLOCK, RESIDENT)
    high += 1
    num_low = columns
    # Zeros of the type that loops carry on.
    num_high = columns * 0
    # The middle without overflow; it is `low` again when nothing lies between the two.
    middle = (low & high) + ((low ^ high) >> 1)
    while (middle != low) & (num_low != keep):
        count = _count(row, keys, columns, middle, BLOCK, RESIDENT)
        enough = count >= keep
        low = tl.where(enough, middle, low)
        num_low = tl.where(enough, count, num_low)
        high = tl.where(enough, high, middle)
        num_high = tl.where(enough, num_high, count)
        middle = (low & high) + ((low ^ high) >> 1)

    # Read once more, in smaller pieces: ranks of ties take registers that the keys occupy so far.
    tied = columns * 0
    for start in range(0, columns, PIECE):
        place = start + tl.arange(0, PIECE)
        piece = _load_keys(row, place, columns)
        tied = _store_mask(mask, piece, place, columns, low, num_high, num_low, keep, tied)


def launch(score: Tensor, keep: int) -> Tensor:
    """bool [N, K] from checked scores, N > 0 and 0 < keep < K."""
    rows, columns = score.shape
    score = score if score.stride(1) == 1 else score.contiguous()
    mask = torch.empty((rows, columns), dtype=torch.bool, device=score.device)
    aligned = columns % 16 == 0 and score.stride(0) % 16 == 0 and score.data_ptr() % 16 == 0
    block, piece, resident, num_warps = _tile(columns, aligned)
    with torch.cuda.device_of(score):
        keep_largest_kernel[(rows,)](
            score,
            mask.view(torch.uint8),
            columns,
            score.stride(0),
            keep,
            BLOCK=block,
            PIECE=piece,
            RESIDENT=resident,
            num_warps=num_warps,
        )
    return mask


def _tile(columns: int, aligned: bool) -> tuple[int, int, bool, int]:
    """Scores at once when counting and when writing, whether a row is one block, and warps."""
    resident = columns <= (_MAX_RESIDENT if aligned else _MAX_RESIDENT_UNALIGNED)
    block = max(32, triton.next_power_of_2(columns)) if resident else _CHUNK
    num_warps = max(1, block // _SCORES_PER_WARP) if resident else _CHUNK_WARPS
    return block, min(block, _WRITTEN_PER_WARP * num_warps), resident, num_warps


def ahead_of_time_cases() -> list[CompileCase]:
    """Rows in registers, up to the longest, and longer ones."""
    aligned = [_case(columns, True) for columns in (4096, 32768, 65536)]
    return aligned + [_case(columns, False) for columns in (16384, 65535)]


def _case(columns: int, aligned: bool) -> CompileCase:
    block, piece, resident, num_warps = _tile(columns, aligned)
    constexprs = {"BLOCK": block, "PIECE": piece, "RESIDENT": resident}
    sizes = ("columns", "score_stride")
    return CompileCase(
        name=f"keep_largest_per_row, K = {columns}{', unaligned' * (not aligned)}",
        kernel=keep_largest_kernel,
        signature={
            "score": "*fp32",
            "mask": "*u8",
            **dict.fromkeys((*sizes, "keep"), "i32"),
            **dict.fromkeys(constexprs, "constexpr"),
        },
        constexprs=constexprs,
        divisible_by_16=("score", "mask", *(sizes if aligned else ())),
        num_warps=num_warps,
    )
