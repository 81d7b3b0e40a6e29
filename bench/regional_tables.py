"""Tables and a picture of the regional method, from bench/results; nothing is typed by hand.

python -m bench.regional_tables   write the picture to bench/plots
"""

import io
import re
from collections.abc import Sequence

import typer
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.kernel_pictures import MUTED, STYLE
from bench.training_tables import NOT_MEASURED, PLOTS, Record, latest, read, table

PICTURE = "gap-against-time.svg"
_GOALS = ((5.0, "5 times"), (20.0, "20 times"))
_GOAL_CLOSED = 0.65
# By how a setting's name begins, the first that fits.
_FAMILIES = {
    "wanda++ published": ("#d55e00", "v"),
    "wanda++": ("#009e73", "^"),
    "best-2:4": ("#0072b2", "o"),
    "": ("#8d8a2b", "s"),
}


def curve_table() -> str:
    """What each setting costs in runs of plain Wanda, and how much of the gap it closes."""
    records = latest(read("curve"), "model", "setting")
    if not records:
        return NOT_MEASURED
    models = list(dict.fromkeys(record["model"] for record in records))
    found = {(record["model"], record["setting"]): record for record in records}
    rows = []
    for setting in dict.fromkeys(record["setting"] for record in records):
        cells = [_curve_cells(found.get((model, setting))) for model in models]
        rows.append([setting, *(cell for pair in cells for cell in pair)])
    heads = ["setting"]
    for model in models:
        heads += [f"{model}: time", "gap closed"]
    words = [_protocol(model, records) for model in models]
    return f"{' '.join(words)}{_shared(records)}\n\n{table(heads, rows)}"


def _curve_cells(record: Record | None) -> list[str]:
    if record is None:
        return ["", ""]
    return [f"{record['times_reference']:.1f}", f"{record['gap_closed']['report']:.0%}"]


def _protocol(model: str, records: Sequence[Record]) -> str:
    record = [entry for entry in records if entry["model"] == model][-1]
    dense, wanda = record["perplexity_dense"]["report"], record["perplexity_wanda"]["report"]
    return (
        f"{model}: {record['num_samples']} x {record['length']} tokens of {record['calibration']}; "
        f"perplexity on {record['windows']} windows {dense:.2f} dense, {wanda:.2f} by plain Wanda."
    )


def _shared(records: Sequence[Record]) -> str:
    machine = records[-1]["machine"]
    where = f" CPU time on {machine['processor']}, threads: {machine['threads']}"
    other = any(record["machine_shared"] for record in records)
    return f"{where}; the machine had other work." if other else f"{where}."


def ablation_table() -> str:
    """What each part is worth on each model."""
    records = latest(read("ablation"), "model", "question", "answer")
    if not records:
        return NOT_MEASURED
    models = list(dict.fromkeys(record["model"] for record in records))
    found = {(r["model"], r["question"], r["answer"]): r for r in records}
    rows = [
        [question, answer, *(_ablation_cell(found.get((m, question, answer))) for m in models)]
        for question, answer in dict.fromkeys((r["question"], r["answer"]) for r in records)
    ]
    return table(["question", "answer", *models], rows)


def _ablation_cell(record: Record | None) -> str:
    """Gap closed, and what else tells something where it does."""
    if record is None:
        return ""
    more = []
    if record["question"].startswith("published"):
        more.append(f"{record['moved']:.1%} of kept weights moved")
    if "error_held_out" in record:
        trained, held_out = record["error_trained_on"], record["error_held_out"]
        more.append(f"error {trained:.3f} trained on, {held_out:.3f} held out")
    notes = f" ({'; '.join(more)})" if more else ""
    return f"{record['gap_closed']['report']:.0%}{notes}"


def curve_svg(records: Sequence[Record]) -> str:
    """Gap closed against time, a panel a model."""
    models = list(dict.fromkeys(record["model"] for record in records))
    with style.context(["default", STYLE]):
        size = (9.2, 4.2)
        figure = Figure(figsize=size, layout="constrained", facecolor="#ffffff")
        panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
        for axes, model in zip(panels, models, strict=True):
            _panel(axes, [record for record in records if record["model"] == model])
            axes.set(title=model, xlabel="Time, in runs of plain Wanda")
        panels[0].set_ylabel("Of the gap Wanda to dense\nin log-perplexity, closed (%)")
        buffer = io.StringIO()
        keys = ("Date", "Creator", "Format", "Type")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(keys))
    text = re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)
    return re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", text)


def _panel(axes: Axes, records: Sequence[Record]) -> None:
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(axis="y")
    for times, name in _GOALS:
        axes.axvline(times, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate(name, (times, 0.0), (2, 2), textcoords="offset points", color=MUTED)
    axes.axhline(100 * _GOAL_CLOSED, color=MUTED, linewidth=0.8, linestyle=(0, (5, 3)))
    for record in records:
        name = record["setting"]
        colour, mark = next(looks for start, looks in _FAMILIES.items() if name.startswith(start))
        place = (record["times_reference"], 100 * record["gap_closed"]["report"])
        axes.plot(*place, mark, color=colour, markersize=6)
        label, offset = _label(name)
        axes.annotate(
            label, place, offset, textcoords="offset points", fontsize=6.5, color=colour,
            ha="center" if offset[0] == 0 else "left",
        )  # fmt: skip
    axes.margins(x=0.25)


def _label(name: str) -> tuple[str, tuple[int, int]]:
    """What is written beside a point, and where: fewer rounds lie close together on one curve."""
    family, _, variant = name.partition(", ")
    if family != "best-2:4" or not variant:
        # Beside the mark and a little below, where the curve of best-2:4 does not pass.
        return name, (6, 2 if family == "best-2:4" else -8)
    first = variant.startswith("1 round")
    return (variant if first else variant.removesuffix(" rounds")), (0, 6)


def main() -> None:
    records = latest(read("curve"), "model", "setting")
    PLOTS.mkdir(exist_ok=True)
    (PLOTS / PICTURE).write_text(curve_svg(records), encoding="utf-8")
    print(f"wrote {PLOTS / PICTURE}")


if __name__ == "__main__":
    typer.run(main)
