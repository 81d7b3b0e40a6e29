"""How a block is tuned."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.errors import SecateurError

Optimizer = Literal["adam", "rmsprop"]
Schedule = Literal["cosine", "constant"]
Trained = Literal["all", "matrices", "matrices_and_vectors"]
Loss = Literal["squared", "relative"]
Scale = Literal["relative", "absolute"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings:
    """Everything that decides the result of `optimize`, beside its data."""

    optimizer: Optimizer = "adam"
    """`adam` (0.9, `second_moment`), or `rmsprop` with smoothing 0.99; no weight decay."""
    second_moment: float = 0.99
    """Adam's second beta: a few hundred steps a block are too few for the usual 0.999."""
    learning_rate: float = 0.5
    scale: Scale = "relative"
    """What the learning rate is counted in. `absolute`: in weights, as published rates are.
    `relative`: a parameter [..., K] steps by learning_rate * rms / sqrt(K), rms over its weights
    that are not zero; a vector [n] by learning_rate / n. So a step changes outputs by a like
    share whatever the width and the scale of the weights."""
    schedule: Schedule = "cosine"
    """`cosine` falls from the learning rate to zero over all steps of all rounds."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises from zero; cosine only."""
    rounds: int = 5
    samples_per_round: int | None = None
    """Drawn anew each round without replacement; None for all, in a new order each round."""
    samples_per_step: int = 2
    tokens_per_micro_batch: int = 4096
    """At most so many tokens, but at least one sample, are in a forward pass; a speed and memory
    choice that changes results by rounding only."""
    held_out: float = 0.0
    """Share of the samples that decides which round is best; neither these nor samples that share
    tokens of a text with them are trained on. 0 trusts the last round."""
    loss: Loss = "squared"
    """`squared`: sum of squared differences. `relative`: each token's is divided by the target's
    own square, as the norm at the entry of the next layer does, so that a few huge tokens do not
    decide."""
    trained: Trained = "all"
    """`all` parameters, the `matrices` that have a mask, or these and all one-dimensional ones."""
    frozen_mask: bool = True
    """Masked weights are held at zero at every step; otherwise they move within a round, and the
    next projection decides anew."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("loss", Loss),
            ("trained", Trained),
            ("scale", Scale),
        ):
            known = get_args(kinds)
            value = getattr(self, name)
            _require(value in known, f"{name} one of {', '.join(known)}", value)
        _require(
            0.0 < self.learning_rate < float("inf"), "a learning_rate above 0", self.learning_rate
        )
        _require(0.0 < self.second_moment < 1.0, "0 < second_moment < 1", self.second_moment)
        _require(0.0 <= self.warmup < 1.0, "0 <= warmup < 1", self.warmup)
        _require(0.0 <= self.held_out < 1.0, "0 <= held_out < 1", self.held_out)
        for name in ("rounds", "samples_per_step", "tokens_per_micro_batch"):
            _require(getattr(self, name) >= 1, f"{name} of at least 1", getattr(self, name))
        _require(
            self.samples_per_round is None or self.samples_per_round >= 1,
            "samples_per_round of at least 1",
            self.samples_per_round,
        )


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise SecateurError(f"expected {expected}, got {got!r}")


PUBLISHED = ReconstructionSettings(
    optimizer="rmsprop",
    learning_rate=3e-7,
    scale="absolute",
    schedule="constant",
    warmup=0.0,
    rounds=5,
    samples_per_round=32,
    samples_per_step=1,
    trained="all",
    frozen_mask=False,
)
"""Wanda++ (arXiv 2503.04992): five rounds of 32 samples, each round after a new projection."""
