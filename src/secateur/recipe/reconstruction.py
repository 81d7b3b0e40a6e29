"""Options of the regional optimizer, which tunes each block after its matrices were pruned."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from secateur.recipe.require import require
from secateur.seeds import require_seed

Preset = Literal["best", "wanda++", "published"]
Granularity = Literal["block", "halves"]
TrainedParameters = Literal["all", "matrices", "matrices_and_vectors"]

_CHOICES = {
    "preset": get_args(Preset),
    "optimizer": ("adam", "rmsprop"),
    "scale": ("relative", "absolute"),
    "schedule": ("cosine", "constant"),
    "loss": ("squared", "relative"),
    "granularity": get_args(Granularity),
    "parameters": get_args(TrainedParameters),
}


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How each block is tuned against itself as it was before it was pruned.

    A field that is None has the preset's value (see `RECONSTRUCTION_PRESETS`).
    """

    preset: Preset | None = None
    """`best`, `wanda++`, or `published`, the setting of Wanda++'s authors (arXiv 2503.04992).
    None: `wanda++` for the method of this name, else `best`."""
    rounds: int | None = None
    samples_per_round: int | Literal["all"] | None = None
    """Calibration samples drawn anew each round."""
    samples_per_step: int | None = None
    """Samples that share a step of the optimizer."""
    optimizer: Literal["adam", "rmsprop"] | None = None
    rate: float | None = None
    """Full learning rate."""
    scale: Literal["relative", "absolute"] | None = None
    """The rate counts in weights (`absolute`), or in rms / sqrt(K) of each matrix."""
    schedule: Literal["cosine", "constant"] | None = None
    loss: Literal["squared", "relative"] | None = None
    """`relative`: every token's error is divided by its own output's size."""
    granularity: Granularity | None = None
    """`block` as a whole, or its `halves`, attention and then MLP."""
    parameters: TrainedParameters | None = None
    """What is trained: `all`, the pruned `matrices`, or these and the vectors."""
    frozen_mask: bool | None = None
    """False: pruned weights move too within a round, and the method's score chooses the mask anew
    before every round and after the last."""
    held_out: float | None = None
    """Share of the samples that decides which round is best; neither these nor samples that share
    tokens of the text with them are trained on. 0: the last round is."""
    autocast: bool | None = None
    """Products in bfloat16 while a block is tuned; weights are kept in fp32 in any case. None: on
    a GPU, for blocks of 16-bit weights, as products in fp32 take about ten times as long there."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "samples_per_round", "samples_per_step"):
            value = getattr(self, name)
            require(
                value in (None, "all") or value >= 1,
                f"reconstruct: expected {name} of at least 1, got {value}",
            )
        require(
            self.rate is None or 0.0 < self.rate < float("inf"),
            f"reconstruct: expected a rate above 0, got {self.rate}",
        )
        require(
            self.held_out is None or 0.0 <= self.held_out < 1.0,
            f"reconstruct: expected held_out of at least 0 and below 1, got {self.held_out}",
        )
        require_seed(self.seed, "reconstruct: ")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            require(
                value is None or value in known,
                f"reconstruct: expected {name} one of {', '.join(known)}, got {value!r}",
            )

    def resolved(self, preset: Preset) -> "Reconstruction":
        """The same with every field said.

        Args:
            preset: that holds where none is named.
        """
        base = RECONSTRUCTION_PRESETS[self.preset or preset]
        said = {name: value for name, value in vars(self).items() if value is not None}
        return replace(base, **said)


_BEST = Reconstruction(
    preset="best",
    rounds=5,
    samples_per_round="all",
    samples_per_step=2,
    optimizer="adam",
    rate=0.5,
    scale="relative",
    schedule="cosine",
    loss="squared",
    granularity="block",
    parameters="all",
    frozen_mask=True,
    held_out=0.0,
)
RECONSTRUCTION_PRESETS: dict[Preset, Reconstruction] = {
    "best": _BEST,
    "wanda++": replace(_BEST, preset="wanda++", samples_per_round=32, samples_per_step=1),
    "published": replace(
        _BEST,
        preset="published",
        samples_per_round=32,
        samples_per_step=1,
        optimizer="rmsprop",
        rate=3e-7,
        scale="absolute",
        schedule="constant",
        frozen_mask=False,
    ),
}
