"""Device functions: which two of four columns are kept, without sorting.

A group of four 16-bit weights is one 64-bit word, so that all that follows is arithmetic within a
thread: a tile of words is [rows, groups], and the four columns are four tensors.

The two highest of four come out of four comparisons: the winner and the loser of columns 0 and 1,
the winner and the loser of columns 2 and 3, and then whether the loser on one side still beats the
winner on the other. Every comparison asks whether the lower column stays ahead: it does on ties,
and NaN ranks below every number. That is a total order, so that the result is that of counting
wins against the three others.
"""

import triton
import triton.language as tl


@triton.jit
def halves(words: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Both 32-bit halves of 64-bit words: columns 0 and 1, columns 2 and 3."""
    return words.to(tl.int32), (words >> 32).to(tl.int32)


@triton.jit
def columns_of(
    low: tl.tensor, high: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four 16-bit columns of a group, each in the upper half of an int32."""
    return low << 16, low & -65536, high << 16, high & -65536


@triton.jit
def as_fp32(bits: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """The numbers whose 16 bits are in the upper halves, exactly."""
    if TYPE == tl.float16:
        return (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        # A bf16 is the upper half of an fp32; and Triton's interpreter cannot compute with bf16.
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def stays_ahead(lower: tl.tensor, higher: tl.tensor) -> tl.tensor:
    """Whether the lower column's score ranks above the higher column's."""
    return (lower >= higher) | (higher != higher)


@triton.jit
def choose(
    s0: tl.tensor, s1: tl.tensor, s2: tl.tensor, s3: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The pattern of a group, as four booleans.

    Returns:
        (first_left, first_right, both_left, both_right): column 0 beats 1; column 2 beats 3; the
        kept columns are 0 and 1; they are 2 and 3. Where neither of the last two holds, the winner
        of each side is kept.
    """
    first_left = stays_ahead(s0, s1)
    first_right = stays_ahead(s2, s3)
    winner_left = tl.where(first_left, s0, s1)
    loser_left = tl.where(first_left, s1, s0)
    winner_right = tl.where(first_right, s2, s3)
    loser_right = tl.where(first_right, s3, s2)
    both_left = stays_ahead(loser_left, winner_right)
    both_right = ~stays_ahead(winner_left, loser_right)
    return first_left, first_right, both_left, both_right


@triton.jit
def pick(
    both_left: tl.tensor, both_right: tl.tensor, left: tl.tensor, right: tl.tensor, mixed: tl.tensor
) -> tl.tensor:
    """What belongs to the pattern."""
    return tl.where(both_left, left, tl.where(both_right, right, mixed))
