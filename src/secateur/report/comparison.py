"""Several models on the same text, side by side: what the demo writes and the page shows."""

from pydantic import BaseModel, ConfigDict

from secateur.report.record import QualityRecord, Report


class Sample(BaseModel):
    """One continuation."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    prompt: str
    text: str


class Variant(BaseModel):
    """One model of a comparison; the dense one has no report."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    """Shown in tables and pictures, such as `Wanda 2:4`."""
    family: str
    """`dense`, `magnitude`, `wanda`, `sparsegpt` or `depth`: chooses the colour."""
    setting: str
    """`2:4`, `50%`, `6 of 8 blocks`: groups the bars."""
    quality: QualityRecord
    num_parameters: int
    num_zeros: int
    num_bytes: int
    seconds_compress: float
    prefill_tokens_per_second: float | None
    """Measured side by side in one run; None when not measured."""
    samples: tuple[Sample, ...] = ()
    report: Report | None = None


class Comparison(BaseModel):
    """Variants of one model, the dense one first."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    title: str
    created: str
    machine: dict[str, str]
    versions: dict[str, str]
    block_influence: tuple[float, ...]
    variants: tuple[Variant, ...]
