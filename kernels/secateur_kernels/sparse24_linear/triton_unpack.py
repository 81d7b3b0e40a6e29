"""Fragment order to a dense tile, in registers: the Triton functions.

A 32-bit word of a fragment holds the two kept values of one group of four columns, and a lane's
four words of a 16 x 32 fragment lie side by side: so a warp loads a fragment with 16 bytes a lane,
and what it gets stays with the thread to which the matrix instruction assigns it. A word becomes
two: the dense columns 0, 1 and 2, 3 of its group. That is about 13 integer instructions a word,
and integer instructions, not memory, are what bounds this kernel.
"""

import triton
import triton.language as tl


@triton.jit
def _opaque(low: tl.tensor, high: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Both unchanged, and no business of the optimiser.

    Otherwise LLVM sees that 16-bit halves of 64-bit shifts are wanted, computes each half on its
    own, and packs them again: four more instructions a word.
    """
    return tl.inline_asm_elementwise(  # type: ignore[no-any-return]
        "mov.b32 $0, $2; mov.b32 $1, $3;",
        "=r,=r,r,r",
        [low, high],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def unpack_tile(
    values: tl.tensor,
    metadata: tl.tensor,
    STEPS: tl.constexpr,
    SUB_TILES: tl.constexpr,
    SPLIT_GROUPS: tl.constexpr,
    TYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Dense weights [16 * SUB_TILES, 64 * STEPS] from packed words.

    Args:
        values: int32 [2 * STEPS, SUB_TILES, 128], two kept values a word.
        metadata: int32 [STEPS, SUB_TILES, 32].
        STEPS: of 64 columns.
        SUB_TILES: of 16 rows.
        SPLIT_GROUPS: order of columns, see `column_order`.
        TYPE: bf16 or fp16, of the values.
        INTERPRETED: by Triton's interpreter, which knows no assembly.
    """
    # step, fragment, sub-tile, q, t, column half, row half
    words = tl.reshape(values, [STEPS, 2, SUB_TILES, 8, 4, 2, 2])
    nibbles = tl.permute(tl.reshape(metadata, [STEPS, SUB_TILES, 8, 2, 2]), [0, 3, 1, 2, 4])
    nibbles = tl.reshape(nibbles, [STEPS, 2, SUB_TILES, 8, 1, 2, 1])
    nibbles = nibbles >> (4 * tl.reshape(tl.arange(0, 4), [1, 1, 1, 1, 4, 1, 1]))
    nibbles = nibbles >> (16 * tl.reshape(tl.arange(0, 2), [1, 1, 1, 1, 1, 1, 2]))
    # The compiler converts layouts where two tensors first meet. Through one word of 64 bits they
    # meet once, and values stay where they are; without it they take a way through shared memory.
    both = (words.to(tl.int64) & 0xFFFFFFFF) | (nibbles.to(tl.int64) << 32)
    words = both.to(tl.int32)
    nibbles = (both >> 32).to(tl.int32)
    # Bits 0, 1 of a nibble are the column of the first value, bits 2, 3 of the second.
    first = (words & 0xFFFF).to(tl.int64) << ((nibbles << 4) & 0x30).to(tl.int64)
    second = ((words >> 16) & 0xFFFF).to(tl.int64) << ((nibbles << 2) & 0x30).to(tl.int64)
    group = first | second
    low = group.to(tl.int32)
    high = (group >> 32).to(tl.int32)
    if not INTERPRETED:
        low, high = _opaque(low, high)
    pairs = tl.join(low, high)
    dense = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16)).to(TYPE, bitcast=True)
    # to: sub-tile, row half, q, step, fragment, column half, then t, pair, item in some order
    if SPLIT_GROUPS:
        dense = tl.permute(dense, [2, 6, 3, 0, 1, 5, 7, 4, 8])
    else:
        dense = tl.permute(dense, [2, 6, 3, 0, 1, 5, 4, 7, 8])
    return tl.reshape(dense, [16 * SUB_TILES, 64 * STEPS])


@triton.jit
def column_order(STEPS: tl.constexpr, SPLIT_GROUPS: tl.constexpr) -> tl.tensor:
    """The column of the weight that column i of `unpack_tile` holds: int32 [64 * STEPS].

    A thread has whole groups of four columns. mma.sync takes them in plain order, since its
    operands may be permuted at will. wgmma wants columns 2t, 2t + 1 and 8 + 2t, 8 + 2t + 1 of
    sixteen from thread t: called so, they stay in registers, if x is permuted alike.
    """
    column = tl.arange(0, 64 * STEPS)
    if SPLIT_GROUPS:
        column = column // 16 * 16 + column % 8 // 2 * 4 + column % 16 // 8 * 2 + column % 2
        column = tl.max_contiguous(tl.multiple_of(column, 2), 2)
    return column
