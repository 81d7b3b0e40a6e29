"""The stage that removes whole blocks, or the attention or MLP of blocks."""

from dataclasses import dataclass
from typing import Literal

from secateur.recipe.require import require

Criterion = Literal["block_influence", "angular_distance", "relative_magnitude", "perplexity"]
Granularity = Literal["block", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class DropBlocksStage:
    """Remove the `count` of lowest score, or those named in `blocks` (0-based).

    `criterion`, a low score goes first:
    `block_influence` (1 - mean cosine of input and output, ShortGPT), `relative_magnitude` (of what
    a block adds, against its output), `perplexity` (the loss on the calibration tokens without that
    block), `angular_distance` (across `count` blocks in a row, which go together).
    """

    stage: Literal["drop_blocks"] = "drop_blocks"
    criterion: Criterion = "block_influence"
    count: int | None = None
    blocks: tuple[int, ...] = ()
    granularity: Granularity = "block"
    """What goes: whole blocks, or only their attention or their MLP."""
    remeasure: bool = False
    """Measure anew after each removal instead of once; with `perplexity`, SLEB's greedy search."""
    protect_first: int = 0
    """So many blocks at the front are never chosen."""
    protect_last: int = 0
    trace_loss: bool = False
    """Measure the loss on the calibration tokens after each removal, for the report."""

    def __post_init__(self) -> None:
        require(
            (self.count is None) == bool(self.blocks),
            "drop_blocks needs either `count` or `blocks`, and not both",
        )
        require(
            self.count is None or self.count >= 1,
            f"drop_blocks: expected `count` of at least 1, got {self.count}",
        )
        require(
            len(set(self.blocks)) == len(self.blocks) and all(block >= 0 for block in self.blocks),
            f"drop_blocks: `blocks` must be distinct 0-based indices, got {list(self.blocks)}",
        )
        self._check_choice()

    def _check_choice(self) -> None:
        protected = self.protect_first, self.protect_last
        require(
            min(protected) >= 0,
            "drop_blocks: expected `protect_first` and `protect_last` of at least 0, got "
            f"{protected[0]} and {protected[1]}",
        )
        require(
            not self.blocks or not (self.remeasure or any(protected)),
            "drop_blocks: `remeasure`, `protect_first` and `protect_last` say how blocks are "
            "chosen, but `blocks` names them",
        )
        is_angular = self.criterion == "angular_distance"
        require(
            not (is_angular and self.remeasure),
            "drop_blocks: angular_distance chooses all blocks at once, so that there is nothing "
            "to `remeasure`",
        )
        require(
            not (is_angular and self.granularity != "block"),
            "drop_blocks: angular_distance measures whole blocks in a row; for `granularity` "
            f"{self.granularity} take another criterion",
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether blocks are chosen by activations, or a loss is to be measured."""
        return not self.blocks or self.trace_loss

    @property
    def makes_stand_ins(self) -> bool:
        """Whether parts of blocks go, which only Secateur's own checkpoints can say."""
        return self.granularity != "block"
