"""What a model went through before it came in, and since: stages, and the blocks that are left."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from secateur.checkpoint.load import LoadedModel
from secateur.models.blocks import find_blocks
from secateur.report.record import REPORT_FILE, AnyStage, DropRecord, Report, load_report
from secateur.report.training_record import InheritRecord


@dataclass(frozen=True)
class Ancestry:
    """How a model came to be what it is."""

    num_dense_blocks: int
    kept: tuple[int, ...]
    """Indices, among the dense model's blocks, of those that there are."""
    stages: tuple[AnyStage, ...] = ()
    """All that the model went through, in order."""
    dense_folder: Path | None = None
    """Where the dense model is; None if there is no report, or it names no folder that is there."""
    dense_source: str = ""
    """What the first report calls the dense model; empty if there is no report."""

    @property
    def dense_is_missing(self) -> bool:
        """Whether the model came of a dense one that is not there."""
        return bool(self.dense_source) and self.dense_folder is None

    def after(self, record: AnyStage) -> "Ancestry":
        """The same once the model has gone through one more stage."""
        return replace(self._with_blocks_of(record), stages=(*self.stages, record))

    def without(self, dropped: Collection[int]) -> "Ancestry":
        """The same once blocks, counted among those that there are, have gone."""
        left = tuple(old for place, old in enumerate(self.kept) if place not in dropped)
        return replace(self, kept=left)

    def _with_blocks_of(self, record: AnyStage) -> "Ancestry":
        if isinstance(record, DropRecord):
            return self.without(record.blocks_gone)
        if isinstance(record, InheritRecord):
            return self.without(range(record.rounds[-1].num_blocks, len(self.kept)))
        return self


def ancestry_of(loaded: LoadedModel) -> Ancestry:
    """Read from the reports of what made the model; without one it is its own dense model.

    Raises:
        SecateurError: a report cannot be read.
    """
    reports, dense_folder = _history(loaded)
    num_blocks = len(find_blocks(loaded.model))
    num_dense_blocks = reports[0].model.num_blocks if reports else num_blocks
    source = reports[0].model.source if reports else ""
    kept = tuple(range(num_dense_blocks))
    ancestry = Ancestry(num_dense_blocks, kept, (), dense_folder, source)
    for report in reports:
        for record in report.stages:
            ancestry = ancestry.after(record)
    if len(ancestry.kept) == num_blocks:
        return ancestry
    # Somebody else changed the blocks as well: which are left cannot be told.
    return replace(ancestry, num_dense_blocks=num_blocks, kept=tuple(range(num_blocks)))


def _history(loaded: LoadedModel) -> tuple[list[Report], Path | None]:
    """Reports of the compressions that led to a model, first one first, and where that one began.

    The second is None if there is no report, or the first one names no folder that is there.
    """
    reports: list[Report] = []
    begun: Path | None = None
    folder, seen = loaded.folder, set[Path]()
    while folder is not None and (folder / REPORT_FILE).is_file():
        seen.add(folder.resolve())
        reports.insert(0, load_report(folder))
        made_from = reports[0].model
        # A relative path would be another folder where the working directory is another one.
        source = Path(made_from.folder or made_from.source)
        is_there = not made_from.from_hub and source.is_dir()
        folder = source if is_there and source.resolve() not in seen else None
        begun = folder
    return reports, begun
