"""Measuring a model with some of its matrices cut: once each, and noted at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.lowrank import Intervention
from secateur.models.sites import WeightSite
from secateur.report.search_record import ScoreRecord
from secateur.search.compose import Cuts, published_order
from secateur.search.cuts import CutMatrix, replaced
from secateur.search.journal import Journal
from secateur.search.measure import Measure
from secateur.search.significance import clustered_mean
from secateur.search.space import Place


@dataclass(frozen=True)
class SplitMeasure:
    """One split of a task."""

    name: str
    measure: Measure
    units: Sequence[int]
    """By item."""
    keeps_values: bool
    """Whether the value of every item is noted, for paired comparison."""


@dataclass(frozen=True)
class Measured:
    """A score, and what it is the mean of where that was kept."""

    score: ScoreRecord
    values: tuple[float, ...]


class Trials:
    """Measures cuts of one model; what the journal knows is not measured again."""

    def __init__(self, sites: Mapping[Place, WeightSite], journal: Journal) -> None:
        self._sites = sites
        self._journal = journal
        self._matrix: CutMatrix | None = None
        self._weights: dict[Intervention, Tensor] = {}

    def measure(self, cuts: Cuts, split: SplitMeasure) -> Measured:
        """The score of the model with these cuts; the model is dense before and afterwards."""
        key = f"{split.name} {cuts_name(cuts)}"
        noted: dict[str, Any] | None = self._journal.get(key)
        if noted is None:
            noted = self._noted(cuts, split)
            self._journal.put(key, noted)
        score = ScoreRecord(value=noted["score"], standard_error=noted["standard_error"])
        return Measured(score, tuple(noted["values"]))

    def _noted(self, cuts: Cuts, split: SplitMeasure) -> dict[str, Any]:
        # Weights of cuts that stay from trial to trial are kept, and no others.
        self._weights = {cut: self._weight(cut) for cut in cuts}
        weights = {self._sites[cut.matrix, cut.block]: self._weights[cut] for cut in cuts}
        first_changed = min((cut.block for cut in cuts), default=0)
        with replaced(weights):
            values = split.measure(first_changed)
        score = clustered_mean(values, split.units)
        return {
            "score": score.value,
            "standard_error": score.standard_error,
            "values": list(values) if split.keeps_values else [],
        }

    def _weight(self, cut: Intervention) -> Tensor:
        if cut in self._weights:
            return self._weights[cut]
        site = self._sites[cut.matrix, cut.block]
        if self._matrix is None or self._matrix.site is not site:
            self._matrix = CutMatrix(site)
        return self._matrix.weight(cut.fraction)


def cut_name(cut: Intervention) -> str:
    """A cut in a word: `mlp_in:3:0.05`."""
    return f"{cut.matrix}:{cut.block}:{cut.fraction!r}"


def cuts_name(cuts: Cuts) -> str:
    """Cuts in their published order, whatever order they come in."""
    return "+".join(cut_name(cut) for cut in published_order(cuts)) or "dense"
