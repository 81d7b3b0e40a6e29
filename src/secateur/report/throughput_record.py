"""Speed of whole models as data: JSON lines, one a measurement, each complete in itself.

Times are in seconds. The lines of one run share `created` and are read back as one record.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import DEFAULT_BUFFER_SIZE
from pathlib import Path
from typing import Literal

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain

RunnerName = Literal["engine", "transformers eager", "transformers static"]


@dataclass(frozen=True, kw_only=True)
class ThroughputModel:
    """One of the models that took turns."""

    name: str
    source: str
    """A folder's name, a Hub id, or a shape with its form."""
    form: str
    """`dense`, or what is compressed, such as `2:4` or `depth+low-rank`."""
    num_blocks: int
    num_parameters: int
    """Values that are stored."""
    weight_bytes: int
    streamed_bytes: int
    """Of the weights that one decode step must read."""
    is_reference: bool
    """It has 2:4 layers, and no kernel for them runs on this device: no speed-up is claimed."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Two quantiles of times."""

    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class ThroughputMeasurement:
    """One model, one way to run it, one workload."""

    model: str
    runner: RunnerName
    batch_size: int
    prompt_length: int
    new_tokens: int
    """Of every sequence."""
    rounds: int
    time_to_first_token: Spread
    """From the start of the batch to a sequence's first token, over sequences and rounds."""
    time_per_output_token: Spread | None
    """Between two tokens of a sequence, once all have their first one; None where none are."""
    prefill_tokens_per_second: float
    """All prompts, until the last sequence has its first token; median of the rounds."""
    decode_tokens_per_second: float | None
    """Of all sequences together, once all have their first token; median of the rounds."""
    tokens_per_second: float
    """New tokens over the whole time, prompts included; median of the rounds."""
    peak_memory_bytes: int | None
    """On the device, the other models' weights taken off; None where it cannot be told."""


@dataclass(frozen=True, kw_only=True)
class ThroughputRecord:
    """One run of the benchmark."""

    created: str
    """ISO 8601, UTC."""
    machine: dict[str, str]
    versions: dict[str, str]
    dtype: str
    copy_bandwidth: float
    """Bytes a second, reads and writes of a large copy counted."""
    baseline: str
    """Name of the model that the others are compared with."""
    models: tuple[ThroughputModel, ...]
    measurements: tuple[ThroughputMeasurement, ...]
    notes: tuple[str, ...]
    """What a reader should know, one sentence each."""

    def model(self, name: str) -> ThroughputModel:
        """One of `models`."""
        return next(model for model in self.models if model.name == name)

    def floor(self, name: str) -> float:
        """Seconds that a decode step of a model takes at least if its weights are in memory."""
        return self.model(name).streamed_bytes / self.copy_bandwidth

    def baseline_of(self, one: ThroughputMeasurement) -> ThroughputMeasurement | None:
        """The baseline under the same workload, in the same runner; None where it did not run."""
        asked = _workload(one)
        found = (m for m in self.measurements if m.model == self.baseline and _workload(m) == asked)
        return next(found, None)

    def to_lines(self) -> str:
        """JSON lines that `throughput_from_text` reads back."""
        shared = {
            name: value
            for name, value in to_plain(self).items()
            if name not in ("models", "measurements")
        }
        return "".join(
            json.dumps(
                {
                    "format_version": 1,
                    **shared,
                    "model": to_plain(self.model(one.model)),
                    "measurement": to_plain(one),
                }
            )
            + "\n"
            for one in self.measurements
        )


def _workload(one: ThroughputMeasurement) -> tuple[object, ...]:
    return one.runner, one.batch_size, one.prompt_length, one.new_tokens


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line as it is written."""

    format_version: Literal[1]
    created: str
    machine: dict[str, str]
    versions: dict[str, str]
    dtype: str
    copy_bandwidth: float
    baseline: str
    notes: tuple[str, ...]
    model: ThroughputModel
    measurement: ThroughputMeasurement


def throughput_from_text(text: str, source: str = "throughput") -> tuple[ThroughputRecord, ...]:
    """Parse JSON lines into runs, in the order in which they began.

    Raises:
        SecateurError: a line is not one of these; says which.
    """
    runs: dict[str, list[_Line]] = {}
    for number, row in enumerate(text.splitlines(), start=1):
        if not row.strip():
            continue
        line = _parsed(row, f"{source}, line {number}")
        runs.setdefault(line.created, []).append(line)
    return tuple(_joined(lines) for lines in runs.values())


def _parsed(row: str, place: str) -> _Line:
    try:
        return from_plain(_Line, json.loads(row))
    except (SecateurError, ValueError) as error:
        raise SecateurError(f"{place} is no measurement of throughput: {error}") from None


def _joined(lines: Sequence[_Line]) -> ThroughputRecord:
    first = lines[0]
    return ThroughputRecord(
        created=first.created,
        machine=first.machine,
        versions=first.versions,
        dtype=first.dtype,
        copy_bandwidth=first.copy_bandwidth,
        baseline=first.baseline,
        models=tuple({line.model.name: line.model for line in lines}.values()),
        measurements=tuple(line.measurement for line in lines),
        notes=first.notes,
    )


def append_throughput(record: ThroughputRecord, path: Path) -> None:
    """Add the lines of a run to a file, which need not exist, in one write.

    Raises:
        SecateurError: the file cannot be written.
    """
    lines = record.to_lines().encode()
    try:
        # Room for all lines: they go out together, and no reader sees one in part.
        with path.open("ab", buffering=max(len(lines), DEFAULT_BUFFER_SIZE)) as file:
            file.write(lines)
    except OSError as error:
        raise SecateurError(f"cannot write {path}: {error.strerror}") from error
