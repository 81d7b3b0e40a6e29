"""What a call of a compiled 2:4 kernel must bring along, for sums that thread blocks share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """Memory beside operands and result."""

    workspace_floats: int
    """Of float32, with any content."""
    counters: int
    """Of 32 bits, zero."""


def needs_of(shared: int, ranges: int, slot_floats: int, warps: int) -> Needs:
    """Of so many pieces of the result whose steps are divided into equal contiguous ranges.

    Args:
        shared: the pieces; nothing is needed where there is none, or each range has whole ones.
        ranges: one for a thread block or cluster.
        slot_floats: the sums of a piece.
        warps: of a piece, with a counter each.
    """
    if shared == 0 or shared % ranges == 0:
        return Needs(0, 0)
    # Ranges that end within pieces have two sums to hand over.
    slots = ranges * (1 if ranges % shared == 0 else 2)
    return Needs(slots * slot_floats, shared * warps)
