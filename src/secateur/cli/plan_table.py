"""A plan as tables on the terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.plan.result import Plan, PlanRow
from secateur.report.numbers import format_bytes, printable


def plan_table(plan: Plan) -> RenderableType:
    """The ways to keep to the limit side by side, then what becomes of the layers."""
    title = f"{plan.model}: {plan.limit} ({plan.workload}, {plan.device})"
    table = Table(title=Text(printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    # `(...)` is what was predicted of the column before it.
    for header in ("ms", "speed", "(...)", "weights", "loss", "(...)", "perplexity"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in plan.rows:
        table.add_row(*_cells(row, plan))
    notes = [Text(printable(note), style="dim") for note in plan.notes]
    # Below the table: a column of it would be too narrow to read.
    done = [Text(f"{row.name}: {row_words(row)}") for row in plan.rows if row.forms]
    return Group(table, *done, *_missed(plan), *notes, Text(_assumption(), style="dim"))


def _cells(row: PlanRow, plan: Plan) -> list[str]:
    predicted, found = row.predicted, row.measured
    if predicted is None:
        return [row.name, *["-"] * 7]
    dense = plan.rows[0].predicted
    assert dense is not None
    speedup = f"{dense.milliseconds / predicted.milliseconds:.2f}"
    if found is None:
        measured = ["-", "-", speedup, format_bytes(predicted.num_bytes), "-"]
    else:
        measured = [
            f"{found.milliseconds:.3g}",
            f"{found.speedup:.2f}",
            speedup,
            format_bytes(found.num_bytes),
            f"{found.loss:.3f}",
        ]
    text = None if found is None else found.perplexity
    perplexity = "-" if text is None else f"{text:.2f}"
    return [row.name, *measured, f"{predicted.loss:.3f}", perplexity]


def row_words(row: PlanRow) -> str:
    """Such as `without block 3; 12 dense, 8 rank 64`."""
    without = f"without {', '.join(row.removed)}; " if row.removed else ""
    forms = sorted((row.forms or {}).items(), key=lambda entry: _order(entry[0]))
    return without + ", ".join(f"{count} {form}" for form, count in forms)


def _order(form: str) -> tuple[int, int]:
    return (1, int(form.split()[1])) if form.startswith("rank") else (0, 0)


def _missed(plan: Plan) -> list[Text]:
    return [Text(f"{row.name}: {row.note}") for row in plan.rows if row.note]


def _assumption() -> str:
    return (
        "(...): predicted before it was built, from times and losses of single changes, put right "
        "by models built before; the rest is measured, all models in turns"
    )
