"""Several models on the same text, side by side: what the demo writes and the page shows."""

import json
from dataclasses import dataclass

from secateur.plain import to_plain
from secateur.report.record import QualityRecord, Report


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One continuation."""

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model of a comparison; the dense one has no report."""

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
    decode_tokens_per_second: float | None = None
    """Greedy steps of one sequence with the key-value cache, measured in the same way."""
    samples: tuple[Sample, ...] = ()
    report: Report | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants of one model, the dense one first."""

    title: str
    created: str
    machine: dict[str, str]
    versions: dict[str, str]
    block_influence: tuple[float, ...]
    variants: tuple[Variant, ...]

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(to_plain(self), indent=2) + "\n"
