"""A search as pictures: where cuts help, how much to cut, and what is left on held-out items."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from secateur.recipe.factor_stage import MatrixTypeName
from secateur.report import plots, search_words
from secateur.report.search_record import SearchRecord, TrialRecord

_CHANGE = LinearSegmentedColormap.from_list(
    "change", ["#9a4f12", "#e9bd73", "#f6f5f1", "#9cc3dc", "#1f5f95"]
).with_extremes(bad=plots.LINE)
_LINES = ("#1f6fad", "#c2571a", "#2f8f6b", "#a04f9a", "#b8860b")
_NUM_NAMED = len(_LINES)
_OTHERS = "#a3abb2"
_VALIDATION, _TEST = "#c98a1e", "#2f7fc1"
_WRITTEN_BLOCKS = 16

Place = tuple[str, int]


def gains(record: SearchRecord) -> dict[Place, list[tuple[float, float]]]:
    """By matrix, the improvement on validation at each kept fraction, in scores' own unit."""
    sign = -1 if record.task.lower_is_better else 1
    dense = record.state("dense").validation.value
    found: dict[Place, list[tuple[float, float]]] = {}
    for trial in record.trials:
        gain = sign * (trial.validation.value - dense)
        place = (trial.cut.matrix, trial.cut.block)
        found.setdefault(place, []).append((trial.cut.fraction, gain))
    return found


def heat_map_svg(record: SearchRecord) -> str:
    """The best validation change of each matrix: types are rows, blocks columns.

    Composed cuts have a frame. Cells that were not searched are grey.
    """
    best = {
        place: max(points, key=lambda point: -math.inf if math.isnan(point[1]) else point[1])
        for place, points in gains(record).items()
    }
    ranked = {place.matrix for place in record.ranking}
    types = [t for t in get_args(MatrixTypeName) if t in ranked or any(t == p[0] for p in best)]
    blocks = range(record.model.num_blocks)
    cells = np.array([[best.get((t, b), (0.0, math.nan))[1] for b in blocks] for t in types])
    limit = float(np.max(np.abs(cells), where=np.isfinite(cells), initial=0.0)) or 1.0
    written = len(blocks) <= _WRITTEN_BLOCKS
    with plots.drawing(0.9 + (0.42 if written else 0.3) * len(types)) as figure:
        axes = figure.subplots()
        looks: dict[str, Any] = {"edgecolors": plots.PAPER, "linewidth": 1.2 if written else 0.3}
        mesh = axes.pcolormesh(cells, cmap=_CHANGE, vmin=-limit, vmax=limit, clip_on=False, **looks)
        axes.set(ylim=(len(types), 0), xlabel="Block")
        axes.spines[:].set_visible(False)
        axes.set_yticks(np.arange(len(types)) + 0.5, map(search_words.type_title, types))
        step = max(1, len(blocks) // 16)
        axes.set_xticks(np.arange(len(blocks))[::step] + 0.5, map(str, blocks[::step]))
        if written:
            _write_cells(axes, cells, types, best, limit, search_words.is_fraction(record.task))
        else:
            figure.colorbar(mesh, ax=axes, pad=0.01, aspect=14).outline.set_visible(False)
        for cut in record.state("composed").cuts:
            corner = (cut.block + 0.035, types.index(cut.matrix) + 0.06)
            frame = Rectangle(
                corner, 0.93, 0.88, fill=False, edgecolor=plots.ON_LIGHT, linewidth=1.6
            )
            frame.set_clip_on(False)
            axes.add_patch(frame)
        return plots.as_svg(figure, _heat_map_words(record, best))


def _write_cells(
    axes: Axes,
    cells: NDArray[np.float64],
    types: Sequence[str],
    best: Mapping[Place, tuple[float, float]],
    limit: float,
    is_fraction: bool,
) -> None:
    for (row, column), value in np.ndenumerate(cells):
        if (types[row], column) not in best:
            continue
        colour = plots.ON_DARK if abs(value) > 0.62 * limit else plots.ON_LIGHT
        fraction = best[types[row], column][0]
        shown = _signed(100 * value, 1) if is_fraction else _signed(value, 3)
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        axes.text(column + 0.5, row + 0.38, shown, fontsize=8.5, **place)
        axes.text(column + 0.5, row + 0.73, f"at {100 * fraction:g}%", fontsize=6.5, **place)


def _signed(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–"
    shown = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(shown) == 0 else shown.replace("-", "−")


def _heat_map_words(record: SearchRecord, best: Mapping[Place, tuple[float, float]]) -> str:
    shown = (
        f"{search_words.type_title(matrix)} of block {block} "
        f"{search_words.format_improvement(record.task, gain)} at {100 * fraction:g}%"
        for (matrix, block), (fraction, gain) in best.items()
    )
    return f"Best validation change by matrix: {'; '.join(shown)}."


def fraction_svg(record: SearchRecord) -> str:
    """Validation score against the kept fraction, a line a matrix; the best ones are named.

    Scores far worse than most run out of the frame.
    """
    lines: dict[Place, list[TrialRecord]] = {}
    for trial in record.trials:
        lines.setdefault((trial.cut.matrix, trial.cut.block), []).append(trial)
    found = gains(record)
    order = sorted(found, key=lambda place: -max(_known(gain) for _, gain in found[place]))
    named = order[:_NUM_NAMED]
    scale = 100 if search_words.is_fraction(record.task) else 1
    fractions = sorted({trial.cut.fraction for trial in record.trials})
    with plots.drawing(3.6) as figure:
        axes = figure.subplots()
        for place in [*reversed(order[_NUM_NAMED:]), *reversed(named)]:
            trials = sorted(lines[place], key=lambda trial: trial.cut.fraction)
            points = (
                [fractions.index(trial.cut.fraction) for trial in trials],
                [scale * trial.validation.value for trial in trials],
            )
            if place in named:
                number = named.index(place)
                title = f"{search_words.type_title(place[0])}, block {place[1]}"
                axes.plot(
                    *points, color=_LINES[number], marker="o", markersize=3.5, label=title, zorder=3
                )
            else:
                axes.plot(*points, color=_OTHERS, linewidth=0.7, alpha=0.6, zorder=2)
        _dense_line(axes, record, scale)
        axes.set_xticks(range(len(fractions)), [f"{100 * fraction:g}%" for fraction in fractions])
        _frame(axes, record, scale)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
        )
        shown = ", ".join(f"{search_words.type_title(m)} of block {b}" for m, b in named)
        return plots.as_svg(figure, f"Validation score by kept fraction; best are {shown}.")


def _known(gain: float) -> float:
    return -math.inf if math.isnan(gain) else gain


def _dense_line(axes: Axes, record: SearchRecord, scale: float) -> None:
    value = scale * record.state("dense").validation.value
    if math.isfinite(value):
        axes.axhline(value, color=plots.INK, linewidth=1, linestyle=(0, (5, 3)), label="dense")


def _frame(axes: Axes, record: SearchRecord, scale: float) -> None:
    """Titles, and a range that most of the scores are in."""
    axes.grid(axis="y")
    unit = "%" if scale == 100 else "nats" if record.task.metric == "loss" else ""
    axes.set(xlabel="Kept part of the full rank (not to scale)")
    axes.set_ylabel(f"Validation {record.task.metric}{f' ({unit})' if unit else ''}")
    _range(axes, record, scale)


def _range(axes: Axes, record: SearchRecord, scale: float) -> None:
    """All improvements, and as far down as most of the other scores lie."""
    dense, sign = record.state("dense").validation, -1 if record.task.lower_is_better else 1
    centre = scale * dense.value
    values = [scale * trial.validation.value for trial in record.trials]
    gains_here = [sign * (v - centre) for v in values if math.isfinite(v - centre)]
    if not gains_here:
        return
    losses = sorted(max(0.0, -gain) for gain in gains_here)
    above = max(*gains_here, 0.0)
    below = max(losses[int(0.8 * (len(losses) - 1))], 0.5 * above)
    margin = 0.06 * (above + below) or 1.0
    low, high = (below, above) if sign > 0 else (above, below)
    axes.set_ylim(centre - low - margin, centre + high + margin)


def states_svg(record: SearchRecord) -> str:
    """Dense, best single and composed on both splits, with standard errors."""
    scale = 100 if search_words.is_fraction(record.task) else 1
    states = record.states
    with plots.drawing(0.9 + 0.58 * len(states)) as figure:
        axes = figure.subplots()
        for offset, split, colour in ((-0.16, "validation", _VALIDATION), (0.16, "test", _TEST)):
            for row, state in enumerate(states):
                score = getattr(state, split)
                value, error = scale * score.value, scale * score.standard_error
                if not math.isfinite(value):
                    continue
                label = f"{split} split" if row == 0 else None
                looks: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 6, "capsize": 3}
                whisker = error if math.isfinite(error) else None
                axes.errorbar(value, row + offset, xerr=whisker, label=label, **looks)
                text = search_words.format_score(record.task, score.value)
                looks = {"color": colour, "fontsize": 8}
                if split == "validation":
                    plots.note_at(axes, text, (value, row + offset), (0, 4), **looks)
                else:
                    plots.note_at(axes, text, (value, row + offset), (0, -4), va="top", **looks)
        axes.set_yticks(
            range(len(states)), [search_words.state_title(state.name) for state in states]
        )
        axes.set_ylim(len(states) - 0.5, -0.62)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        better = "lower is better" if record.task.lower_is_better else "higher is better"
        unit = "%, " if scale == 100 else "nats, " if record.task.metric == "loss" else ""
        axes.set_xlabel(f"{record.task.metric.capitalize()} ({unit}{better})")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        shown = (
            f"{search_words.state_title(state.name)}: "
            f"{search_words.format_estimate(record.task, state.validation)} on validation, "
            f"{search_words.format_estimate(record.task, state.test)} on test"
            for state in states
        )
        return plots.as_svg(figure, f"Scores. {'; '.join(shown)}.")
