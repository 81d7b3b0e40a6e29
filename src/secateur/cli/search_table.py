"""The tables that `secateur search` prints."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.report import search_words
from secateur.report.search_record import SearchRecord
from secateur.report.table import printable


def search_table(record: SearchRecord) -> RenderableType:
    """The result in words, the three models, the chosen cuts, answers, and what to be wary of."""
    parts: list[RenderableType] = [
        Text(printable(search_words.headline(record)), style="bold"),
        "",
        _states(record),
    ]
    if record.steps:
        parts += ["", _cuts(record)]
    else:
        parts += ["", Text("Nothing was chosen: no recipe.")]
    if record.analysis is not None:
        parts += ["", _answers(record)]
    parts += [
        Text(f"! {printable(note)}", style="yellow") for note in search_words.cautions(record)
    ]
    return Group(*parts)


def _states(record: SearchRecord) -> Table:
    task = record.task
    table = _table()
    table.add_column("Model")
    for column in ("Cuts", "Validation", "Test", "Better by", "p"):
        table.add_column(column, justify="right")
    for state in record.states:
        table.add_row(
            search_words.state_title(state.name),
            str(len(state.cuts)),
            search_words.format_estimate(task, state.validation),
            search_words.format_estimate(task, state.test),
            search_words.format_change(task, state.change),
            search_words.format_p(state.change),
        )
        for group, score in state.groups.items():
            # A name out of the task's file: printed as it is, whatever brackets it holds.
            name = Text(f"  {printable(group)}")
            table.add_row(name, "", "", search_words.format_estimate(task, score))
    return table


def _cuts(record: SearchRecord) -> Table:
    table = _table("Chosen cuts, applied together")
    table.add_column("Matrix")
    for column in ("Block", "Kept", "Rank"):
        table.add_column(column, justify="right")
    table.add_column("Layer")
    for cut in record.state("composed").cuts:
        table.add_row(
            search_words.type_title(cut.matrix),
            str(cut.block),
            f"{100 * cut.fraction:g}%",
            f"{cut.rank} of {min(cut.shape)}",
            Text(printable(cut.name)),
        )
    return table


def _answers(record: SearchRecord) -> Table:
    assert record.analysis is not None
    words = " and ".join(map(search_words.cut_words, record.analysis.cuts))
    table = _table(f"Answers with {words}")
    for column in ("Prompt", "Right", "Dense", "Kept", "Discarded"):
        table.add_column(column, overflow="fold")
    for answer in record.analysis.answers:
        cells = (answer.prompt, answer.expected or "", answer.dense, answer.kept, answer.discarded)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _table(title: str | None = None) -> Table:
    shown = None if title is None else Text(title)
    return Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
