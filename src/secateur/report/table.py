"""The tables for a terminal."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.errors import SecateurError
from secateur.report.comparison import Comparison, Variant
from secateur.report.drop_words import criterion_words, dropped_words, perplexities
from secateur.report.factor_words import factored_words
from secateur.report.lists import MISSING, listed
from secateur.report.notes import report_notes
from secateur.report.numbers import (
    format_bytes,
    format_change,
    format_count,
    format_fraction,
    format_number,
    format_optional,
    format_perplexity,
    format_ratio,
    format_seconds,
    printable,
)
from secateur.report.record import (
    AnyStage,
    BlockRecord,
    DropRecord,
    FactoredLayer,
    FactorRecord,
    LayerRecord,
    PruneRecord,
    Report,
)
from secateur.report.training_record import InheritRecord, RecoverRecord
from secateur.report.training_words import training_table

# With the numbers and lists that tables are made of, for pages that show both.
__all__ = [
    "HEADER",
    "MISSING",
    "Row",
    "comparison_rows",
    "comparison_table",
    "decode_ratio",
    "dense_variant",
    "format_bytes",
    "format_change",
    "format_count",
    "format_fraction",
    "format_number",
    "format_optional",
    "format_perplexity",
    "format_ranks",
    "format_ratio",
    "format_rounds",
    "format_seconds",
    "layer_kind",
    "layers_by_kind",
    "listed",
    "prefill_ratio",
    "printable",
    "report_notes",
    "report_table",
    "short_name",
    "tuned_blocks",
]


def dense_variant(comparison: Comparison) -> Variant:
    """The baseline that everything is shown against.

    Raises:
        SecateurError: the comparison does not begin with a dense variant.
    """
    if not comparison.variants or comparison.variants[0].family != "dense":
        found = comparison.variants[0].name if comparison.variants else "no variant"
        raise SecateurError(f"expected a comparison that begins with the dense model, got {found}")
    return comparison.variants[0]


def short_name(variant: Variant) -> str:
    """The name without its setting, for places that show the setting already."""
    name, setting = printable(variant.name), printable(variant.setting)
    return (name.removesuffix(setting).strip() if setting else name) or name


def prefill_ratio(variant: Variant, dense: Variant) -> float | None:
    """Prefill speed against dense, above 1 is faster; None where either was not measured."""
    ours, theirs = variant.prefill_tokens_per_second, dense.prefill_tokens_per_second
    return None if ours is None or not theirs else ours / theirs


def decode_ratio(variant: Variant, dense: Variant) -> float | None:
    """Decode speed against dense, above 1 is faster; None where either was not measured."""
    ours, theirs = variant.decode_tokens_per_second, dense.decode_tokens_per_second
    return None if ours is None or not theirs else ours / theirs


class Row(NamedTuple):
    """One variant as the cells of a table."""

    name: str
    perplexity: str
    change: str
    zeros: str
    parameters: str
    non_zeros: str
    size: str
    seconds: str
    prefill: str
    decode: str


HEADER = Row(
    *("Variant", "Perplexity", "Change", "Zeros", "Params", "Non-zeros", "Size", "Time"),
    *("Prefill", "Decode"),
)


def comparison_rows(comparison: Comparison) -> list[Row]:
    """The comparison as text, a row a variant, in the order of the comparison."""
    dense = dense_variant(comparison)
    return [_row(variant, dense) for variant in comparison.variants]


def _row(variant: Variant, dense: Variant) -> Row:
    quality = variant.quality
    change = format_change(quality.perplexity, dense.quality.perplexity)
    return Row(
        name=printable(variant.name),
        perplexity=format_perplexity(quality.perplexity, quality.standard_error),
        change=MISSING if variant is dense else change,
        zeros=format_fraction(variant.num_zeros / max(1, variant.num_parameters)),
        parameters=format_count(variant.num_parameters),
        non_zeros=format_count(variant.num_parameters - variant.num_zeros),
        size=format_bytes(variant.num_bytes),
        seconds=format_seconds(variant.seconds_compress) if variant.seconds_compress else MISSING,
        prefill=format_ratio(prefill_ratio(variant, dense)),
        decode=format_ratio(decode_ratio(variant, dense)),
    )


def comparison_table(comparison: Comparison) -> Table:
    """The comparison for a terminal of 80 columns or more; a line between settings."""
    table = Table(
        title=Text(printable(comparison.title)),
        caption="Change, Prefill, Decode: against dense. Zeros: of all parameters.",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    # Non-zeros follow from parameters and zeros, and nine columns do not fit.
    for title in HEADER._replace(non_zeros="")._asdict().values():
        if title:
            table.add_column(title, justify="left" if title == HEADER.name else "right")
    following = [variant.setting for variant in comparison.variants[1:]]
    for row, variant, setting in zip(
        comparison_rows(comparison), comparison.variants, [*following, None], strict=True
    ):
        cells = [text for name, text in row._asdict().items() if name != "non_zeros"]
        table.add_row(*map(Text, cells), end_section=setting not in (None, variant.setting))
    return table


def layer_kind(name: str) -> str:
    """What a layer is in any block: `model.layers.3.mlp.experts.17.up_proj` is one of
    `mlp.experts.*.up_proj`.
    """
    _, _, tail = re.sub(r"\.\d+(?=\.|$)", ".*", printable(name)).partition(".*.")
    return tail or printable(name)


AnyLayer = TypeVar("AnyLayer", LayerRecord, FactoredLayer)


def layers_by_kind(layers: Sequence[AnyLayer]) -> dict[str, list[AnyLayer]]:
    """Layers grouped by `layer_kind`, in order of first appearance."""
    kinds: dict[str, list[AnyLayer]] = {}
    for layer in layers:
        kinds.setdefault(layer_kind(layer.name), []).append(layer)
    return kinds


def report_table(report: Report) -> RenderableType:
    """One report for a terminal of 80 columns or more: the facts, each stage, and the notes."""
    parts: list[RenderableType] = [_facts_table(report)]
    for number, stage in enumerate(report.stages, start=1):
        parts += ["", _stage_table(number, stage)]
    parts += [Text(f"! {printable(note)}", style="yellow") for note in report_notes(report)]
    return Group(*parts)


def _facts_table(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    size, model = report.size, report.model
    facts = {
        "Model": f"{printable(model.source)} ({printable(model.architecture)}, {model.dtype})",
        "Parameters": _parameters(report),
        "Size": f"{format_bytes(model.num_bytes)} → {format_bytes(size.num_bytes)}",
        "Blocks": f"{model.num_blocks} → {size.num_blocks}",
        "Time": format_seconds(sum(report.seconds.values())),
        "Peak memory": format_bytes(report.peak_memory_bytes),
    }
    for quality in report.quality:
        shown = format_perplexity(quality.perplexity, quality.standard_error)
        facts[f"Perplexity {quality.when}, {printable(quality.text)}"] = shown
    for name, text in facts.items():
        table.add_row(Text(name, style="dim"), Text(text))
    return table


def _parameters(report: Report) -> str:
    size, before = report.size, report.model.num_parameters
    words = f"{format_count(before)} → {format_count(size.num_parameters)}"
    if size.num_parameters != before:
        words += f" ({format_fraction(report.parameters_left)})"
    if not report.tells_zeros:
        return words
    return f"{words}, {format_fraction(size.num_zeros / max(1, size.num_parameters))} zeros"


def _stage_table(number: int, stage: AnyStage) -> RenderableType:
    if isinstance(stage, RecoverRecord | InheritRecord):
        return training_table(number, stage)
    if isinstance(stage, FactorRecord):
        return _factor_table(number, stage)
    if isinstance(stage, DropRecord):
        return _drop_table(number, stage)
    title = f"Stage {number}: {stage.method}, {stage.pattern}, {stage.sparsity:.1%} zeros"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Layer")
    for column in ("Count", "Zeros", "Error, mean", "Error, worst"):
        table.add_column(column, justify="right")
    for kind, layers in layers_by_kind(stage.layers).items():
        zeros = sum(layer.sparsity for layer in layers) / len(layers)
        table.add_row(Text(kind), str(len(layers)), format_fraction(zeros), *_errors(layers))
    if not tuned_blocks(stage):
        return table
    heading = Text("Output errors of blocks before and after the regional optimizer")
    return Group(table, heading, _tuning_table(stage))


def _drop_table(number: int, stage: DropRecord) -> RenderableType:
    title = Text(f"Stage {number}: {dropped_words(stage)}, by {criterion_words(stage)}")
    if not stage.losses:
        return title
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Removed", "Block", "Perplexity on calibration tokens", "Change"):
        table.add_column(column, justify="right")
    values = perplexities(stage)
    for count, value in enumerate(values):
        block = MISSING if count == 0 else str(stage.order[count - 1])
        change = MISSING if count == 0 else format_change(value, values[0])
        table.add_row(str(count), block, format_number(value), change)
    return Group(title, table)


def tuned_blocks(stage: PruneRecord) -> list[BlockRecord]:
    """The blocks that the regional optimizer worked on."""
    return [block for block in stage.blocks if block.error_before_tuning is not None]


def format_rounds(block: BlockRecord) -> str:
    """`0.210 0.101 0.087`, the errors of the rounds in their order; parts with a name before."""
    parts: dict[str, list[str]] = {}
    for entry in block.rounds:
        error = entry.train_error if entry.held_out_error is None else entry.held_out_error
        parts.setdefault(entry.part, []).append(format_optional(error))
    if list(parts) == ["block"]:
        return " ".join(parts["block"])
    return ", ".join(f"{part} {' '.join(errors)}" for part, errors in parts.items()) or MISSING


def _tuning_table(stage: PruneRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Block", "Before", "After", "Rounds"):
        table.add_column(column, justify="left" if column in ("Block", "Rounds") else "right")
    for block in tuned_blocks(stage):
        before, after = map(format_optional, (block.error_before_tuning, block.output_error))
        table.add_row(str(block.block), before, after, Text(format_rounds(block), style="dim"))
    return table


def _factor_table(number: int, stage: FactorRecord) -> RenderableType:
    title = Text(f"Stage {number}: {factored_words(stage)}")  # too long for a title of the table
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # six columns in 80
        pad_edge=False,
    )
    table.add_column("Layer", no_wrap=True)
    for column in ("Count", "Ranks", "Kept", "Error", "Error, worst"):
        table.add_column(column, justify="right")
    for kind, layers in layers_by_kind(stage.layers).items():
        kept = sum(layer.num_parameters for layer in layers)
        whole = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        cells = (format_ranks(layers), format_fraction(kept / max(1, whole)))
        table.add_row(Text(kind), str(len(layers)), *cells, *_errors(layers))
    return Group(title, table)


def format_ranks(layers: Sequence[FactoredLayer]) -> str:
    """`48`, `16 to 96`, or `dense`, as the layers of one kind came out."""
    ranks = [layer.rank for layer in layers if layer.rank is not None]
    if not ranks:
        return "dense"
    low, high = min(ranks), max(ranks)
    dense = f", {len(layers) - len(ranks)} dense" if len(ranks) < len(layers) else ""
    return (str(low) if low == high else f"{low} to {high}") + dense


def _errors(layers: Sequence[AnyLayer]) -> tuple[str, str]:
    known = [(layer.output_error, layer) for layer in layers if layer.output_error is not None]
    if not known:
        return MISSING, MISSING
    worst, layer = max(known, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    mean = sum(error for error, _ in known) / len(known)
    return format_number(mean, 3), f"{format_number(worst, 3)} in block {layer.block}"
