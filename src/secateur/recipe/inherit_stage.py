"""The stage that builds a smaller model from a model's first blocks and trains it."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.recipe.require import require
from secateur.recipe.training import Training

Start = Literal["inherited", "random", "stacked", "distilled"]
InheritedPart = Literal["both", "attention", "mlp"]
Optimizer = Literal["restarted", "carried"]

DEFAULT_INHERIT_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class InheritStage:
    """Inheritune (arXiv 2404.08634): first blocks, train, grow by the parent's next blocks.

    Embeddings, final norm and head are inherited too. Rounds end when the loss on held-out text is
    at most the parent's plus `tolerance`, or when there are `max_blocks` blocks.

    `start` switches to the baselines: `random` initialises all weights anew, `stacked` does too and
    grows by copies of its own top blocks, `distilled` is random and learns from the parent's
    distribution.
    """

    stage: Literal["inherit"] = "inherit"
    blocks: int
    """In the first round."""
    training: Training
    """Of each round."""
    grow_by: int = 2
    max_blocks: int | None = None
    """None: one block fewer than the parent."""
    tolerance: float = 0.0
    """In nats."""
    start: Start = "inherited"
    part: InheritedPart = "both"
    """What an inherited block takes over; the other half is initialised anew."""
    optimizer: Optimizer = "restarted"
    """Whether AdamW's moments are carried into the next round."""

    def __post_init__(self) -> None:
        for name in ("blocks", "grow_by"):
            value = getattr(self, name)
            require(value >= 1, f"inherit: expected {name} of at least 1, got {value}")
        for name, kind in (("start", Start), ("part", InheritedPart), ("optimizer", Optimizer)):
            known, value = get_args(kind), getattr(self, name)
            require(
                value in known, f"inherit: expected {name} one of {', '.join(known)}, got {value!r}"
            )
        require(
            0.0 <= self.tolerance < float("inf"),
            f"inherit: expected a tolerance of at least 0, got {self.tolerance}",
        )
        require(
            self.max_blocks is None or self.max_blocks >= self.blocks,
            f"inherit: expected max_blocks of at least blocks ({self.blocks}), "
            f"got {self.max_blocks}",
        )
        require(
            self.part == "both" or self.start == "inherited",
            f"inherit: part {self.part} needs start: inherited, but start is {self.start}",
        )
        require(
            self.start != "distilled" or self.training.loss == "distillation",
            "inherit: start distilled needs training with loss: distillation",
        )
        require(
            self.training.block_weight == 0.0,
            "inherit: block_weight is for recover; the blocks of a smaller model stand for others",
        )

    @property
    def needs_calibration(self) -> bool:
        """Training has its own data."""
        return False

    def learning_rate(self, width: int) -> float:
        """Peak for a model of this width: as asked, else the default."""
        return self.training.rate(width, DEFAULT_INHERIT_RATE)
