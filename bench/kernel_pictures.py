"""Curves over numbers of tokens as SVG: pure functions, equal data giving equal bytes."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

INK, MUTED, GRID, PAPER = "#22282f", "#5f6b76", "#d4d9de", "#ffffff"
# After Okabe and Ito, told apart in colour blindness too; marks differ as well.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8d8a2b")
_MARKS = "os^Dv<>"
_SIZE = (9.2, 4.4)
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    **dict.fromkeys(("axes.spines.left", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
}


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    values: Mapping[int, float]
    """Tokens -> height."""
    kind: Literal["shape", "mean", "other"] = "shape"


Level = tuple[float, str]
"""A height that is drawn across, and what it stands for."""


def figure_of(lines: Sequence[Line], title: str, axis: str, level: Level) -> Figure:
    """Curves over tokens on a logarithmic axis, with a line at the level that matters.

    Args:
        lines: at least one.
        title: what is shown.
        axis: what the height is.
        level: drawn across.
    """
    with style.context(["default", STYLE]):
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor=PAPER)
        axes = figure.subplots()
        axes.axhline(level[0], color=MUTED, linewidth=1)
        shapes = [line for line in lines if line.kind == "shape"]
        for index, line in enumerate(shapes):
            looks = {"color": _COLOURS[index % 7], "marker": _MARKS[index % 7]}
            _draw(axes, line, linewidth=1.1, markersize=4, alpha=0.9, **looks)
        for line in lines:
            if line.kind == "mean":
                _draw(axes, line, color=INK, linewidth=2.6)
            elif line.kind == "other":
                _draw(axes, line, color=MUTED, linewidth=1.8, linestyle=(0, (4, 2)))
        _finish(axes, lines, title, axis)
        _name_level(axes, level)
    return figure


def _draw(axes: Axes, line: Line, **looks: Any) -> None:
    tokens = sorted(line.values)
    axes.plot(tokens, [line.values[m] for m in tokens], label=line.label, **looks)


def _finish(axes: Axes, lines: Sequence[Line], title: str, axis: str) -> None:
    tokens = sorted({m for line in lines for m in line.values})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(tokens))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(m) for m in tokens])
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set(title=title, xlabel="M, tokens in a call", ylabel=axis)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)


def _name_level(axes: Axes, level: Level) -> None:
    height, name = level
    place = (axes.get_xlim()[1], height)
    looks: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 8, "color": MUTED}
    axes.annotate(name, place, xytext=(0, -3), textcoords="offset points", **looks)


def lines_svg(lines: Sequence[Line], title: str, axis: str, level: Level) -> str:
    """`figure_of` as SVG text without date or random names."""
    buffer = io.StringIO()
    # The style holds while the file is written too: it decides how text and ids come out.
    with style.context(["default", STYLE]):
        keys = ("Date", "Creator", "Format", "Type")
        figure_of(lines, title, axis, level).savefig(
            buffer, format="svg", metadata=dict.fromkeys(keys)
        )
    text = re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)
    # The two named are about as wide as what the layout was made with.
    return re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", text)
