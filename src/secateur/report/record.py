"""The report as data: `secateur_report.json`, versioned, read back without the model.

Units: seconds, bytes. Errors are relative: ||change of the output|| / ||dense output||.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.recipe.factor_stage import ImportanceName
from secateur.report.record_file import read_record, record_file
from secateur.report.training_record import InheritRecord, RecoverRecord

REPORT_FILE = "secateur_report.json"


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model as it came in."""

    source: str
    """Folder or Hub id; `in memory` for a model object."""
    folder: str = ""
    """Absolute path of a folder, by which it is found from anywhere; empty for all else, and in
    records from before that was noted."""
    from_hub: bool = False
    """Whether `source` is a Hub id."""
    revision: str | None
    architecture: str
    num_blocks: int
    num_parameters: int
    """Tied weights counted once."""
    num_bytes: int
    dtype: str
    unmatched: tuple[str, ...]
    """Parameters that no stage may touch, `name: why`."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The tokens that statistics were taken from."""

    source: str
    num_samples: int
    max_seq_length: int
    num_tokens: int
    seed: int
    tokens_sha256: str


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One pruned weight matrix [N, K]."""

    name: str
    block: int
    shape: tuple[int, int]
    method: str
    """What was really used; see `note` where it is not what the recipe says."""
    pattern: str
    sparsity: float
    """Fraction of zeros afterwards, counted."""
    output_error: float | None
    """On a fixed sample of calibration tokens; None without calibration."""
    num_tokens: int
    """Calibration tokens that reached this matrix."""
    seconds: float
    note: str = ""
    swaps: int = 0
    """Weights of the mask that were traded for others."""


TuningPart = Literal["block", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class TuningRound:
    """One round of the regional optimizer on a block, or on a half of one."""

    part: TuningPart
    round: int
    """From 1; 0 is the block before any step, where samples are held out."""
    train_error: float | None
    """Relative, averaged over the round's steps while the weights moved; None for round 0."""
    held_out_error: float | None
    """The same after the round on samples that are not trained on; None without them."""


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """One decoder block after its layers were pruned."""

    block: int
    output_error: float | None
    """Of the block alone: dense block against pruned block on the same inputs. None where no
    later block needed the pruned outputs."""
    seconds: float
    error_before_tuning: float | None = None
    """The same before the regional optimizer; None without it."""
    rounds: tuple[TuningRound, ...] = ()
    """Of the regional optimizer."""
    note: str = ""
    expert_tokens: tuple[int, ...] = ()
    """Calibration tokens that the router sent to each expert; empty where there are none."""


@dataclass(frozen=True, kw_only=True)
class PruneRecord:
    """What a prune stage did."""

    stage: Literal["prune"] = "prune"
    method: str
    pattern: str
    comparison_group: str | None
    layers: tuple[LayerRecord, ...]
    blocks: tuple[BlockRecord, ...]
    seconds_calibrating: float
    seconds_pruning: float
    seconds_propagating: float
    seconds_tuning: float = 0.0
    """Of the regional optimizer."""
    calibrate_all_experts: bool = False
    """Whether statistics of experts are those of all tokens, not of those routed to them."""
    min_expert_tokens: int | None = None
    """Fewer routed tokens are few; None in records from before that was noted."""

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the pruned matrices."""
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = [size * layer.sparsity for size, layer in zip(sizes, self.layers, strict=True)]
        return sum(zeros) / max(1, sum(sizes))


@dataclass(frozen=True, kw_only=True)
class FactoredLayer:
    """One matrix [N, K] that was factored, or was to be."""

    name: str
    block: int
    shape: tuple[int, int]
    rank: int | None
    """None: it stays dense."""
    num_parameters: int
    """Values stored now; a `down` that several layers share counts for the first of them."""
    output_error: float | None
    """On calibration tokens, against the outputs that it was fitted to: the dense matrix's on the
    same inputs, or on those of the dense block (`in_turn`) or model (`dense_targets`). None
    without calibration."""
    num_tokens: int
    seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class FactorRecord:
    """What a factor stage did."""

    stage: Literal["factor"] = "factor"
    method: str
    budget: float | None
    layers: tuple[FactoredLayer, ...]
    blocks: tuple[BlockRecord, ...]
    warnings: tuple[str, ...] = ()
    seconds: float
    importance: ImportanceName | None = None
    """What an error of an output counted, in the end; None where nothing was weighed, and in
    records from before that was noted."""
    stored_dense: bool = False
    """Ranks were cut, and the factors multiplied back into matrices of the old size."""

    @property
    def factored(self) -> tuple[FactoredLayer, ...]:
        """The matrices that do not stay dense."""
        return tuple(layer for layer in self.layers if layer.rank is not None)

    @property
    def kept_fraction(self) -> float:
        """Values stored now, of those of all the matrices."""
        return _kept(self.layers)

    @property
    def kept_of_factored(self) -> float:
        """Values stored now, of those of the matrices that were factored."""
        return _kept(self.factored)


def _kept(layers: tuple[FactoredLayer, ...]) -> float:
    before = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return sum(layer.num_parameters for layer in layers) / max(1, before)


@dataclass(frozen=True, kw_only=True)
class DropRound:
    """What was measured before blocks were chosen, once or again after each removal."""

    scores: tuple[float | None, ...]
    """By block, or by the first block of a span of as many as go together; None where it was not
    measured: gone, protected, or no such span."""
    chosen: tuple[int, ...]
    """In the order in which they went."""


@dataclass(frozen=True, kw_only=True)
class DropRecord:
    """What a drop_blocks stage did. All indices are those of the model before the stage."""

    stage: Literal["drop_blocks"] = "drop_blocks"
    criterion: str
    block_influence: tuple[float, ...]
    """By block as it was before dropping; empty where that was not what was measured."""
    dropped: tuple[int, ...]
    """0-based indices of the blocks that went, or that lost their attention or MLP."""
    warnings: tuple[str, ...] = ()
    seconds: float
    granularity: Literal["block", "attention", "mlp"] = "block"
    """What went of each block."""
    rounds: tuple[DropRound, ...] = ()
    """One, or one a removal where scores were measured anew; none where blocks were named."""
    losses: tuple[float, ...] = ()
    """In nats a token on the calibration tokens: before, after the first removal, and so on as far
    as they were measured."""
    protected: tuple[int, ...] = ()
    """Blocks that could not be chosen."""
    removed: tuple[str, ...] = ()
    """Modules that went, by dotted name, where blocks stayed."""
    emptied: tuple[int, ...] = ()
    """Blocks that had neither attention nor MLP left after this and so went as a whole."""

    @property
    def blocks_gone(self) -> tuple[int, ...]:
        """The blocks that are not in the model any more."""
        return self.dropped if self.granularity == "block" else self.emptied

    @property
    def first_scores(self) -> tuple[float | None, ...]:
        """What was measured before anything went, by block or first block of a span."""
        return self.rounds[0].scores if self.rounds else self.block_influence

    @property
    def order(self) -> tuple[int, ...]:
        """`dropped` in the order in which blocks went; those that were named, ascending."""
        chosen = tuple(index for entry in self.rounds for index in entry.chosen)
        return chosen or self.dropped


AnyStage = PruneRecord | FactorRecord | DropRecord | RecoverRecord | InheritRecord


@dataclass(frozen=True, kw_only=True)
class VerificationRecord:
    """What `secateur verify` compares a reloaded model with."""

    input_ids: tuple[int, ...]
    logits_sha256: str
    """Of the fp32 logits [length, vocabulary], C order, on the machine that wrote the model."""
    last_logits: tuple[float, ...]
    """The 16 largest logits of the last position, in descending order."""
    last_tokens: tuple[int, ...]
    """The tokens that those logits belong to."""


@dataclass(frozen=True, kw_only=True)
class SizeRecord:
    """The model as it went out."""

    num_parameters: int
    num_bytes: int
    num_zeros: int
    num_blocks: int


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """Perplexity on a text: non-overlapping windows, remainder dropped."""

    text: str
    when: Literal["before", "after"] = "after"
    """Compression."""
    perplexity: float
    standard_error: float
    """Of the perplexity, over windows."""
    num_tokens: int
    max_seq_length: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one compression did."""

    format_version: Literal[1] = 1
    created: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    """Package versions."""
    machine: dict[str, str]
    """Processor, device, cores."""
    model: ModelRecord
    recipe: dict[str, Any]
    calibration: CalibrationRecord | None
    stages: tuple[AnyStage, ...]
    size: SizeRecord
    seconds: dict[str, float]
    """Wall time by step: load, calibration data, each stage, save ..., in order."""
    peak_memory_bytes: int
    """Largest resident size of the process."""
    verification: VerificationRecord | None = None
    quality: tuple[QualityRecord, ...] = ()

    @property
    def tells_zeros(self) -> bool:
        """Whether a stage pruned, or zeros are at least 0.05% of the parameters all the same."""
        pruned = any(isinstance(stage, PruneRecord) for stage in self.stages)
        return pruned or self.size.num_zeros >= 0.0005 * max(1, self.size.num_parameters)

    @property
    def parameters_left(self) -> float:
        """Of those of the model as it came in."""
        return self.size.num_parameters / max(1, self.model.num_parameters)

    def to_json(self) -> str:
        """JSON text that `report_from_text` reads back."""
        return json.dumps(to_plain(self), indent=2) + "\n"


def report_from_text(text: str, source: str = REPORT_FILE) -> Report:
    """Parse a report.

    Raises:
        SecateurError: the text is not a report of this format.
    """
    try:
        return from_plain(Report, json.loads(text))
    except json.JSONDecodeError as error:
        raise SecateurError(f"{source} is not JSON: {error}") from None
    except SecateurError as error:
        raise SecateurError(f"{source} is not a Secateur report: {error}") from None


def load_report(path: str | Path) -> Report:
    """Read the report of a compressed model, from its folder or the JSON file itself.

    Raises:
        SecateurError: there is none, or it is something else.
    """
    file = record_file(path, REPORT_FILE)
    return report_from_text(read_record(file), str(file))
