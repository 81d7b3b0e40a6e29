"""A LASER search as data: `search.json`, versioned, read back without the model.

Scores are in the unit of the task's metric: fractions for accuracies, nats for losses. A change
is an improvement where it is positive, whichever way the metric points.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.recipe.factor_stage import MatrixTypeName
from secateur.report.record_file import read_record, record_file

SEARCH_FILE = "search.json"


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """A mean over items."""

    value: float
    standard_error: float
    """NaN where it cannot be known."""


@dataclass(frozen=True, kw_only=True)
class CutRecord:
    """One matrix cut to a part of its full rank."""

    matrix: MatrixTypeName
    """Its type."""
    block: int
    """From 0."""
    fraction: float
    """Kept part of the full rank."""
    rank: int
    name: str
    """Of the layer in the model."""
    shape: tuple[int, int]
    """(N, K)."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One cut alone, measured on the validation split."""

    cut: CutRecord
    validation: ScoreRecord


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A cut that the composition accepted."""

    cut: CutRecord
    replaces: float | None
    """The kept fraction of an earlier step at the same matrix, which this one replaces."""
    validation: ScoreRecord
    """With all cuts up to this one."""


@dataclass(frozen=True, kw_only=True)
class RankedRecord:
    """What the filter predicted for one matrix."""

    matrix: MatrixTypeName
    block: int
    fraction: float
    """Of the cut that should lower the loss most."""
    predicted_change: float
    """Of the mean validation loss, to first order; negative is better."""
    is_kept: bool
    """Whether the search went on with this matrix."""


@dataclass(frozen=True, kw_only=True)
class ChangeRecord:
    """Against the dense model on the same items of the test split."""

    improvement: float
    standard_error: float
    """Of the mean of the differences item by item."""
    num_better: int
    num_worse: int
    p_value: float
    """Two-sided, of no difference; NaN where it cannot be known."""
    method: Literal["McNemar, exact", "paired differences"]


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """The model with some cuts, or none, on both splits."""

    name: Literal["dense", "single", "composed"]
    cuts: tuple[CutRecord, ...]
    validation: ScoreRecord
    test: ScoreRecord
    groups: dict[str, ScoreRecord]
    """The test score of each group of items, where a task has groups."""
    change: ChangeRecord | None
    """None for the dense model."""


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One prompt, answered three times."""

    prompt: str
    expected: str | None
    dense: str
    kept: str
    """With the cut matrices: only their leading components."""
    discarded: str
    """With only the components that the cuts remove."""


@dataclass(frozen=True, kw_only=True)
class AnalysisRecord:
    """What the discarded components of some cuts answer."""

    cuts: tuple[CutRecord, ...]
    answers: tuple[AnswerRecord, ...]


@dataclass(frozen=True, kw_only=True)
class SearchTaskRecord:
    """What was asked."""

    name: str
    kind: str
    """multiple choice, minimal pairs, cloze, facts, lm-eval or callable."""
    metric: str
    """accuracy, generation, loss, or the name that lm-eval or a caller gives it."""
    lower_is_better: bool
    num_items: int
    num_validation: int
    num_test: int


@dataclass(frozen=True, kw_only=True)
class SearchedModelRecord:
    """The model that was searched."""

    source: str
    architecture: str
    num_blocks: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """Everything that one search found."""

    format_version: Literal[1] = 1
    created: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time of this run; what a resumed search took from its journal is not in it."""
    versions: dict[str, str]
    machine: dict[str, str]
    model: SearchedModelRecord
    task: SearchTaskRecord
    options: dict[str, Any]
    fingerprint: dict[str, str]
    """Digests of the model, the task and the options."""
    notes: tuple[str, ...]
    """What did not go as asked, one sentence each."""
    ranking: tuple[RankedRecord, ...]
    """Best first; empty without a filter."""
    trials: tuple[TrialRecord, ...]
    """By block, matrix type and fraction."""
    num_composition_trials: int
    steps: tuple[StepRecord, ...]
    """What the composition accepted, in this order."""
    states: tuple[StateRecord, ...]
    """The dense model, the best single cut, and the composed one."""
    analysis: AnalysisRecord | None = None

    def state(self, name: str) -> StateRecord:
        """One of `states`."""
        return next(state for state in self.states if state.name == name)

    @property
    def is_found(self) -> bool:
        """Whether any cut was better than the dense model on the validation split."""
        return len(self.state("composed").cuts) > 0

    def to_json(self) -> str:
        """JSON text that `search_from_text` reads back."""
        return json.dumps(to_plain(self), indent=2) + "\n"


def search_from_text(text: str, source: str = SEARCH_FILE) -> SearchRecord:
    """Parse a search record.

    Raises:
        SecateurError: the text is not a search record of this format.
    """
    try:
        return from_plain(SearchRecord, json.loads(text))
    except json.JSONDecodeError as error:
        raise SecateurError(f"{source} is not JSON: {error}") from None
    except SecateurError as error:
        raise SecateurError(f"{source} is not a record of a search: {error}") from None


def load_search(path: str | Path) -> SearchRecord:
    """Read a search from its folder or the JSON file itself.

    Raises:
        SecateurError: there is none, or it is something else.
    """
    file = record_file(path, SEARCH_FILE)
    return search_from_text(read_record(file), str(file))
