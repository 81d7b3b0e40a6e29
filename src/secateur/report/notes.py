"""What did not go as a recipe says: a note a cause, for one report or for several side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report.comparison import Comparison
from secateur.report.record import AnyStage, DropRecord, FactorRecord, LayerRecord, Report
from secateur.report.routing_words import routing_notes
from secateur.report.training_record import InheritRecord, RecoverRecord
from secateur.report.training_words import training_notes

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Note:
    """A sentence, and the layers that it is about, if it is about some and not all."""

    text: str
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """With names where they are few, and with the first of many."""
        if not self.layers:
            return self.text
        shown = ", ".join(self.layers[:_NAMES_SHOWN])
        if len(self.layers) > _NAMES_SHOWN:
            shown = f"{len(self.layers)} layers: {shown}, …"
        return f"{self.text} ({shown})"


def report_notes(report: Report) -> list[str]:
    """What did not go as the recipe says, one sentence a cause: fallbacks, notes, warnings."""
    return [str(note) for note in _notes(report)]


def comparison_notes(comparison: Comparison) -> list[str]:
    """The same for all variants; what holds for several of them is said once."""
    found: dict[str, list[tuple[str, Note]]] = {}
    for variant in comparison.variants:
        for note in _notes(variant.report) if variant.report else []:
            found.setdefault(note.text, []).append((variant.name, note))
    return [_of_variants(text, notes) for text, notes in found.items()]


def _of_variants(text: str, notes: Sequence[tuple[str, Note]]) -> str:
    if len(notes) == 1:
        name, note = notes[0]
        return f"{name}: {note}"
    where = [f"{name} ({len(note.layers)} layers)" if note.layers else name for name, note in notes]
    return f"{text}: {', '.join(where)}"


def _notes(report: Report) -> list[Note]:
    return [note for stage in report.stages for note in _stage_notes(stage)]


def _stage_notes(stage: AnyStage) -> list[Note]:
    if isinstance(stage, RecoverRecord | InheritRecord):
        return [Note(text) for text in training_notes(stage)]
    if isinstance(stage, DropRecord):
        return [Note(text) for text in stage.warnings]
    if isinstance(stage, FactorRecord):
        warnings = [Note(text) for text in stage.warnings]
        return [*warnings, *_by_text([(layer.note, layer.name) for layer in stage.layers])]
    notes = _by_text([(_layer_note(layer, stage.method), layer.name) for layer in stage.layers])
    of_blocks = [block.note for block in stage.blocks if block.note]
    return [*notes, *map(Note, [*of_blocks, *routing_notes(stage)])]


def _by_text(notes: Sequence[tuple[str, str]]) -> list[Note]:
    names: dict[str, list[str]] = {}
    for text, name in notes:
        if text:
            names.setdefault(text, []).append(name)
    return [Note(text, tuple(layers)) for text, layers in names.items()]


def _layer_note(layer: LayerRecord, method: str) -> str:
    fallback = f"pruned by {layer.method} instead of {method}" if layer.method != method else ""
    return "; ".join(filter(None, (fallback, layer.note)))
