"""The first product of the low-rank linear in Triton: t = x @ down.T, in fp32.

Matrix instructions take no fp32. What they take is exact if t is cut into three pieces: of 8 bits
for bf16, of 11, 11 and 2 bits in the format tf32 for fp16, whose range is too small for pieces.
Three products with pieces hold all 24 bits of t. Plain fp32 instructions ("ieee") would be 16 times
slower, one tf32 product would round t to 11 bits, and "tf32x3" would cut up, too, for nothing.
"""

import triton
import triton.language as tl

from secateur_kernels.sparse24_linear.triton_epilogue import store_tile, sum_slots


@triton.jit(do_not_specialize=["m", "blocks_per_split"])
def low_rank_down_kernel(
    x: tl.tensor,
    down: tl.tensor,
    partials: tl.tensor,
    m: tl.tensor,
    ranks: tl.tensor,
    columns: tl.tensor,
    x_stride: tl.tensor,
    blocks_per_split: tl.tensor,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A tile of fp32 partials [splits, M, ranks] of x [M, K] @ down [ranks, K].T."""
    blocks_m = tl.cdiv(m, BLOCK_M)
    token = tl.program_id(0) % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rank = tl.program_id(0) // blocks_m * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    split = tl.program_id(1)
    first = split * blocks_per_split * BLOCK_K
    stop = tl.minimum(first + blocks_per_split * BLOCK_K, columns)
    column = first + tl.arange(0, BLOCK_K)
    factors = down + rank.to(tl.int64)[:, None] * columns + column[None, :]
    inputs = x + token.to(tl.int64)[:, None] * x_stride + column[None, :]
    acc = tl.zeros([BLOCK_RANK, BLOCK_M], tl.float32)
    for at in range(first, stop, BLOCK_K):
        inside = (at + tl.arange(0, BLOCK_K) < stop)[None, :]
        factor = tl.load(factors, mask=(rank < ranks)[:, None] & inside, other=0.0)
        x_tile = tl.load(inputs, mask=(token < m)[:, None] & inside, other=0.0)
        if INTERPRETED:
            # NumPy has no bf16.
            acc += tl.dot(factor.to(tl.float32), tl.trans(x_tile.to(tl.float32)))
        else:
            acc = tl.dot(factor, tl.trans(x_tile), acc)
        factors += BLOCK_K
        inputs += BLOCK_K
    partials += split.to(tl.int64) * m * ranks
    store_tile(partials, acc, None, rank, token, ranks, m, 0, rank < ranks)


@triton.jit
def cut(rest: tl.tensor, BF16: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The leading piece of an fp32 tensor, still in fp32, and what remains.

    Args:
        rest: fp32.
        BF16: whether the piece is for bf16, else for tf32.
    """
    # By truncation: it is exact, and never rounds up to infinity.
    KEPT: tl.constexpr = -65536 if BF16 else -8192
    piece = (rest.to(tl.int32, bitcast=True) & KEPT).to(tl.float32, bitcast=True)
    # Infinity minus itself is no remainder.
    return piece, tl.where(tl.abs(piece) < float("inf"), rest - piece, 0.0)


@triton.jit(do_not_specialize=["slots"])
def cut_kernel(
    partials: tl.tensor,
    pieces: tl.tensor,
    size: tl.tensor,
    slots: tl.tensor,
    BF16: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sum of partials [slots, size] over slots, in order, cut into pieces [3, size]."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    stride = size.to(tl.int64)
    rest = sum_slots(partials + place, slots, stride, inside)
    for index in tl.static_range(3):
        piece, rest = cut(rest, BF16)
        tl.store(pieces + index * stride + place, piece.to(pieces.dtype.element_ty), mask=inside)
