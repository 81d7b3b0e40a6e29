"""What happened while a block was tuned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundRecord:
    """One round; round 0 is the block as it came, masked, before any step."""

    round: int
    train_error: float
    """Relative error, root of loss over target, averaged over the round's steps while the
    weights moved; NaN for round 0."""
    held_out_error: float | None
    """The same on held-out samples after the round and its projection; None without them."""
    num_steps: int
    """Steps so far."""


@dataclass(frozen=True)
class History:
    """All rounds, and which one's weights the block has now."""

    rounds: tuple[RoundRecord, ...]
    best_round: int
    """0 if no round was better than the block as it came."""
    stopped: str = ""
    """Why it ended early, if it did."""
