"""A plan as plain values: what was chosen, what was predicted, what was measured."""

import json
from dataclasses import dataclass
from typing import Any

from secateur.plain import to_plain


@dataclass(frozen=True)
class PlannedLayer:
    """What becomes of one matrix."""

    name: str
    """In the dense model."""
    form: str
    """`dense`, `2:4`, `rank 64`, or `removed`."""
    dense_milliseconds: float
    milliseconds: float
    loss: float
    """Estimated rise of the loss with this change alone, nats a token; a removal's is not its
    layers'."""


@dataclass(frozen=True)
class Prediction:
    """What adding up says."""

    milliseconds: float
    num_bytes: int
    loss: float
    """Mean loss in nats a token on the held-out calibration samples."""


@dataclass(frozen=True)
class Measurement:
    """What the built model does, beside the dense one in the same turns."""

    milliseconds: float
    dense_milliseconds: float
    num_bytes: int
    loss: float
    """As predicted: on the held-out calibration samples."""
    losses: tuple[float, ...] = ()
    """By held-out sample, nats a token."""
    perplexity: float | None = None
    """Of the evaluation text; None if there was none."""
    standard_error: float | None = None

    @property
    def speedup(self) -> float:
        """Of the dense model's time over this one's."""
        return self.dense_milliseconds / self.milliseconds


@dataclass(frozen=True)
class PlanRow:
    """One way to keep to the limit."""

    name: str
    """`dense`, `plan`, or the only method that was allowed."""
    predicted: Prediction | None = None
    """None where the limit cannot be kept to."""
    measured: Measurement | None = None
    """None where nothing was built."""
    removed: tuple[str, ...] = ()
    forms: dict[str, int] | None = None
    """How many layers take each form."""
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """The whole result."""

    model: str
    device: str
    workload: str
    methods: tuple[str, ...]
    limit: str
    """In words."""
    rows: tuple[PlanRow, ...]
    """Dense, the plan, then single methods."""
    layers: tuple[PlannedLayer, ...]
    removed: tuple[str, ...]
    recipe: dict[str, Any] | None
    """Plain values of the recipe; None where the dense model keeps to the limit."""
    time_scale: float
    """What a layer takes inside the model over what it takes alone."""
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> PlanRow:
        """The plan's own row."""
        return self.rows[1]

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(to_plain(self), indent=2) + "\n"
