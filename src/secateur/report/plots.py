"""Record data as pictures: pure functions that return SVG text, equal data giving equal bytes.

Text stays text, so that it can be read aloud, searched and set in the page's font. Colours of
ink, lines and paper are the constants below, which a page may replace by its own.
"""

import hashlib
import html
import io
import math
import re
import statistics
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from secateur.report import table
from secateur.report.comparison import Variant
from secateur.report.record import FactoredLayer, FactorRecord, LayerRecord, PruneRecord

INK, MUTED, LINE, PAPER = "#22282f", "#5f6b76", "#d4d9de", "#fefefd"

# After Okabe and Ito: told apart in colour blindness and by lightness alone. The calibrated
# methods are two blues, the uncalibrated baseline is not.
FAMILY_COLOURS = {
    "dense": "#7d8790",
    "magnitude": "#e0a13b",
    "wanda": "#6db6de",
    "sparsegpt": "#1f6fad",
    "wanda++": "#3a9d7c",
    "best-2:4": "#0c5f4a",
    "depth": "#c27ba0",
    "svd": "#8a7a9e",
    "svd-whitened": "#6a3d9a",
    "sparse-plus-low-rank": "#b1457a",
}
_WIDTH = 9.2
_Cells = NDArray[np.float64]
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    **dict.fromkeys(("axes.spines.left", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
}
_ZEROS = LinearSegmentedColormap.from_list("zeros", ["#f3f6f8", "#9cc3dc", "#1f5f95"])
_ERROR = LinearSegmentedColormap.from_list("error", ["#fbf6ee", "#e9bd73", "#9a4f12"])
ON_LIGHT, ON_DARK = "#1d2329", "#ffffff"
_UNKNOWN = "#e6e9ec"
_KEPT: dict[str, Any] = {"color": FAMILY_COLOURS["sparsegpt"]}
_DROPPED = {"facecolor": PAPER, "edgecolor": FAMILY_COLOURS["depth"], "hatch": "////"}


def family_colour(family: str) -> str:
    """The colour of a method in every picture; grey for a family not known here."""
    return FAMILY_COLOURS.get(family, "#a3abb2")


def perplexity_svg(variants: Sequence[Variant]) -> str:
    """Perplexity by variant, grouped by setting; the dense variants are horizontal lines.

    A bar more than four times the median is cut off and says so, so that one method that failed
    does not flatten the others. Perplexities that are not finite have a label and no bar.
    """
    settings = [variant.setting for variant in variants]
    pruned = (variant for variant in variants if variant.family != "dense")
    bars = sorted(pruned, key=lambda variant: settings.index(variant.setting))
    values = [v.quality.perplexity for v in variants if math.isfinite(v.quality.perplexity)]
    limit = min(max(values, default=1.0), 4 * statistics.median(values or [1.0]))
    with drawing(3.7) as figure:
        axes = figure.subplots()
        for position, variant in zip(_grouped(axes, bars), bars, strict=True):
            _perplexity_bar(axes, position, variant, limit)
        for dense in (variant for variant in variants if variant.family == "dense"):
            _dense_line(axes, dense)
        axes.set(ylabel="Perplexity (lower is better)", ylim=(0, 1.14 * limit))
        axes.grid(axis="y")
        shown = (f"{_label(v.name)} {table.format_number(v.quality.perplexity)}" for v in variants)
        return as_svg(figure, f"Perplexity by variant: {', '.join(shown)}.")


def _grouped(axes: Axes, bars: Sequence[Variant]) -> list[float]:
    """Positions with a gap wherever the setting changes, and the settings written above."""
    starts = [i for i, v in enumerate(bars) if i == 0 or v.setting != bars[i - 1].setting]
    positions = [i + 0.6 * sum(start <= i for start in starts) for i in range(len(bars))]
    slot = max(9, 84 // max(1, len(bars)))
    for start, end in zip(starts, [*starts, len(bars)][1:], strict=True):
        middle = (positions[start] + positions[end - 1]) / 2
        heading = _label(bars[start].setting, slot * (end - start))
        place = {"xycoords": axes.get_xaxis_transform(), "weight": "bold"}
        note_at(axes, heading, (middle, 1.0), (0, 5), **place)
    crowded: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    width, looks = (30, crowded) if len(bars) > 9 else (slot, {})
    names = [_label(table.short_name(variant), width) for variant in bars]
    axes.set_xticks(positions, names, **looks)
    axes.set_xlim(-0.2, max([*positions, 3.0]) + 0.8)
    return positions


def _perplexity_bar(axes: Axes, position: float, variant: Variant, limit: float) -> None:
    value, error = variant.quality.perplexity, variant.quality.standard_error
    height = min(_lengths([value])[0], limit)
    cut = math.isfinite(value) and value > limit
    whisker = error if math.isfinite(value + error) and not cut else 0.0
    axes.bar(position, height, width=0.72, color=family_colour(variant.family))
    if whisker > 0:
        axes.errorbar(position, height, yerr=whisker, color=INK, capsize=3, elinewidth=0.9)
    text = table.format_number(value) + ("\noff scale ↑" if cut else "")
    note_at(axes, text, (position, height + whisker), (0, 3))


def _dense_line(axes: Axes, variant: Variant) -> None:
    value, error = variant.quality.perplexity, variant.quality.standard_error
    if math.isfinite(value + error):
        axes.axhspan(value - error, value + error, color=LINE, linewidth=0, zorder=0.5)
    height = value if math.isfinite(value) else 0.0
    axes.axhline(height, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    text = f"{_label(table.short_name(variant))}\n{table.format_number(value)}"
    note_at(axes, text, (axes.get_xlim()[1], height), (5, 0), ha="left", va="center")


def layers_svg(stage: PruneRecord | FactorRecord) -> str:
    """What became of each kind of layer (rows) in each block (columns), and its output error.

    Zeros of a prune stage, values kept of a factor stage, ranks where these are all kept. Values
    are written into the cells while they fit, else a scale stands beside the map. Layers of one
    kind in one block, such as experts, are averaged.
    """
    kinds, blocks = _axes_of(stage.layers)
    errors = 100 * _averages([(x.name, x.block, x.output_error) for x in stage.layers])
    highest = float(np.max(errors, where=np.isfinite(errors), initial=0.0)) or 1.0
    maps = [_outcome_map(stage)]
    if not np.isnan(errors).all():
        maps += [("Output error (% of the dense output)", errors, _ERROR, highest)]
    shape = (1, len(maps)) if len(blocks) <= 10 else (len(maps), 1)
    with drawing((0.75 + 0.24 * len(kinds)) * shape[0]) as figure:
        panels = figure.subplots(*shape, squeeze=False, sharey=True, sharex=True)
        for axes, (title, values, colours, limit) in zip(panels.flat, maps, strict=True):
            _heat_map(axes, values, colours, limit)
            axes.set_yticks(np.arange(len(kinds)) + 0.5, [_label(kind) for kind in kinds])
            step = max(1, len(blocks) // 16)
            axes.set_xticks(np.arange(len(blocks))[::step] + 0.5, map(str, blocks[::step]))
            axes.set(title=title, xlabel="Block")
            axes.label_outer()
        spans = (f"{name} {np.nanmin(v):.3g} to {np.nanmax(v):.3g}" for name, v, *_ in maps)
        return as_svg(figure, f"{len(kinds)} kinds of layers by block: {'; '.join(spans)}.")


def _outcome_map(stage: PruneRecord | FactorRecord) -> tuple[str, _Cells, Colormap, float]:
    if isinstance(stage, PruneRecord):
        zeros = 100 * _averages([(x.name, x.block, x.sparsity) for x in stage.layers])
        return "Zeros (%)", zeros, _ZEROS, 100.0
    if stage.stored_dense:
        full = [(x, min(x.shape)) for x in stage.layers]
        ranks = [(x.name, x.block, (x.rank or whole) / whole) for x, whole in full]
        return "Rank (% of the full one)", 100 * _averages(ranks), _ZEROS, 100.0
    kept = [(x.name, x.block, x.num_parameters / (x.shape[0] * x.shape[1])) for x in stage.layers]
    return "Values kept (%)", 100 * _averages(kept), _ZEROS, 100.0


def _axes_of(
    layers: Sequence[LayerRecord] | Sequence[FactoredLayer],
) -> tuple[list[str], list[int]]:
    kinds = dict.fromkeys(table.layer_kind(layer.name) for layer in layers)
    return list(kinds), sorted({layer.block for layer in layers})


def _averages(values: Sequence[tuple[str, int, float | None]]) -> _Cells:
    """[kinds, blocks] from (layer, block, value); NaN where no layer has a value."""
    cells: dict[tuple[str, int], list[float]] = {}
    for name, block, value in values:
        if value is not None:
            cells.setdefault((table.layer_kind(name), block), []).append(value)
    kinds = dict.fromkeys(table.layer_kind(name) for name, _, _ in values)
    blocks = sorted({block for _, block, _ in values})
    rows = [[cells.get((kind, block), [math.nan]) for block in blocks] for kind in kinds]
    return np.array([[sum(cell) / len(cell) for cell in row] for row in rows])


def _heat_map(axes: Axes, values: _Cells, colours: Colormap, highest: float) -> None:
    written = values.shape[1] <= 20
    looks: dict[str, Any] = {"edgecolors": PAPER, "linewidth": 0.8 if written else 0.2}
    mesh = axes.pcolormesh(values, cmap=colours, vmin=0, vmax=highest, clip_on=False, **looks)
    axes.set(facecolor=_UNKNOWN, ylim=(len(values), 0))
    axes.spines[:].set_visible(False)
    if not written:
        axes.figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12).outline.set_visible(False)
    for (row, column), value in np.ndenumerate(values) if written else ():
        colour = ON_DARK if value > 0.83 * highest else ON_LIGHT
        place = (column + 0.5, row + 0.5)
        axes.text(*place, _cell(value), ha="center", va="center", fontsize=7.5, color=colour)


def _cell(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if value >= 99.5 or value == 0 else f"{value:.2g}"


def block_influence_svg(influence: Sequence[float], dropped: Collection[int] = ()) -> str:
    """Block Influence by block; dropped blocks are hatched and named in a legend."""
    return block_scores_svg(influence, dropped, "Block Influence\n(1 − mean cosine)")


def block_scores_svg(scores: Sequence[float | None], dropped: Collection[int], label: str) -> str:
    """Any score by block, with its name; a block without a score has no bar."""
    influence = {index: score for index, score in enumerate(scores) if score is not None}
    with drawing(2.9) as figure:
        axes = figure.subplots()
        for fate, looks in (("kept", _KEPT), ("dropped", _DROPPED)):
            chosen = [i for i in influence if (i in dropped) is (looks is _DROPPED)]
            bars = axes.bar(chosen, _lengths([influence[i] for i in chosen]), label=fate, **looks)
            if len(scores) <= 20:
                labels = [table.format_number(influence[i], 3) for i in chosen]
                axes.bar_label(bars, labels, padding=2, fontsize=8.5)
        axes.set_xticks(range(0, len(scores), max(1, len(scores) // 20)))
        if len(influence) < len(scores):
            axes.set_xlim(-0.7, len(scores) - 0.3)
        axes.set(xlabel="Block (from 0)", ylabel=label)
        axes.grid(axis="y")
        if dropped:
            axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        shown = ", ".join(f"{i}: {value:.3g}" for i, value in influence.items())
        gone = f"Dropped: {table.listed(sorted(dropped))}." if dropped else ""
        name = " ".join(label.partition("(")[0].split())
        return as_svg(figure, f"{name} by block: {shown}. {gone}")


def seconds_svg(seconds: Mapping[str, float]) -> str:
    """Wall time by step, the first step on top."""
    values = list(seconds.values())
    with drawing(0.62 + 0.25 * len(values)) as figure:
        axes = figure.subplots()
        labels = [table.format_seconds(value) for value in values]
        _sideways(axes, [_label(s) for s in seconds], values, labels, FAMILY_COLOURS["sparsegpt"])
        axes.set_xlabel("Seconds")
        shown = (f"{_label(step)} {text}" for step, text in zip(seconds, labels, strict=True))
        return as_svg(figure, f"Time by step: {', '.join(shown)}.")


def size_svg(variants: Sequence[Variant]) -> str:
    """Bytes on disk and non-zero weights, side by side, a row a variant."""
    names = [_label(variant.name) for variant in variants]
    colours = [family_colour(variant.family) for variant in variants]
    sizes = [variant.num_bytes for variant in variants]
    weights = [variant.num_parameters - variant.num_zeros for variant in variants]
    labels = list(map(table.format_bytes, sizes)), list(map(table.format_count, weights))
    scale, units = (1e9, ("GB", "billions")) if max(sizes) >= 1e9 else (1e6, ("MB", "millions"))
    with drawing(0.85 + 0.27 * len(variants)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, texts, values in zip(panels, labels, (sizes, weights), strict=True):
            _sideways(axes, names, [value / scale for value in values], texts, colours)
        panels[0].set(title="Size on disk", xlabel=units[0])
        panels[1].set(title="Weights that are not zero", xlabel=units[1])
        shown = (f"{n} {s}, {w} non-zero weights" for n, s, w in zip(names, *labels, strict=True))
        return as_svg(figure, f"Size by variant: {'; '.join(shown)}.")


def _sideways(
    axes: Axes, names: Sequence[str], values: Sequence[float], labels: Sequence[str], colours: Any
) -> None:
    lengths = _lengths(values)
    axes.barh(range(len(lengths)), lengths, height=0.66, color=colours)
    for row, (length, label) in enumerate(zip(lengths, labels, strict=True)):
        note_at(axes, label, (length, row), (4, 0), ha="left", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max([*lengths, 0.0]) or 1.0)


def _lengths(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in values]


def note_at(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **looks: Any
) -> None:
    """Write a note beside a point: `offset` in points, `looks` as for annotate."""
    looks = {"ha": "center", "va": "bottom", "fontsize": 8.5, "annotation_clip": False, **looks}
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **looks)


def _label(text: str, width: int = 40) -> str:
    short = textwrap.shorten(table.printable(text), 40, placeholder="…") or "?"
    return textwrap.fill(short, width, break_long_words=False)


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """A figure under the house style, whatever the user's own matplotlib settings are."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # The viewer's font draws the text: a glyph that ours lacks does no harm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def as_svg(figure: Figure, alt: str) -> str:
    """The figure as one element that can stand in a page: no metadata, no id used twice."""
    buffer = io.StringIO()
    keys = ("Date", "Creator", "Format", "Type")
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(keys), transparent=True)
    # Names stand between tags with their < and > escaped, so that no edit of a tag meets one.
    text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", _short_tag, text)
    own = rf"\1s{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    text = re.sub(r"<[^>]*>", lambda t: re.sub(r'( id="|url\(#|href="#)', own, t[0]), text)
    start = f'<svg role="img" aria-label="{html.escape(alt)}" font-family="sans-serif"'
    return text.replace("<svg", start, 1)


def _short_tag(found: re.Match[str]) -> str:
    """A tag without a fixed font, an id that nothing refers to, or figures beyond hundredths."""
    tag = re.sub(r' font-family: [^;"]*;|(?<=<g) id="[^"]*"', "", found[0])
    return re.sub(r"(?<=\.\d\d)\d+|(?<=\s)\s+", "", tag) if tag.startswith("<path") else tag
