"""An analysis of attention as pictures: rank and column mass by block, and a map of all heads."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from secateur.report import attention_words, plots
from secateur.report.attention_record import AttentionBlock, AttentionRecord

_RANK = LinearSegmentedColormap.from_list(
    "rank", ["#9a4f12", "#e9bd73", "#f6f5f1", "#9cc3dc", "#1f5f95"]
).with_extremes(bad=plots.LINE)
_HEAD, _STRONGEST, _LAZY = "#6db6de", "#1f6fad", "#c98a1e"
_NAMED_RUNS = 8
_WRITTEN_CELLS = (16, 16)
"""Heads and blocks up to which a map has its figures written into it."""

Values = Callable[[AttentionBlock], tuple[float, ...]]


def blocks_svg(record: AttentionRecord) -> str:
    """Rank above and column mass below: every head a dot, the strongest of each block a line.

    Lazy blocks are shaded and named. Dotted: attention that looks at all tokens alike.
    """
    percent = f"{100 * record.share:g}%"
    with plots.drawing(5.6) as figure:
        rank, mass = figure.subplots(2, 1, sharex=True)
        _panel(rank, record, lambda block: block.ranks, record.even_rank)
        rank.axhline(record.threshold, color=_LAZY, linewidth=1, linestyle=(0, (5, 3)))
        beside: dict[str, Any] = {"ha": "left", "va": "center", "color": _LAZY}
        right = (rank.get_xlim()[1], record.threshold)
        plots.note_at(rank, f"lazy below\n{record.threshold:g}", right, (5, 0), **beside)
        rank.set_ylabel(f"Rank\n({percent} of squared singular values)")
        _panel(mass, record, lambda block: block.masses, record.even_mass)
        mass.set(ylabel=f"Column mass\n(columns with {percent} of attention)", xlabel="Block")
        _name_lazy(rank, record.lazy)
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1.11)}
        rank.legend(frameon=False, ncols=2, borderaxespad=0, **place)
        return plots.as_svg(figure, _blocks_alt(record))


def _panel(axes: Axes, record: AttentionRecord, values: Values, even: float) -> None:
    numbers = [block.block for block in record.blocks]
    for block in record.lazy:
        axes.axvspan(block - 0.5, block + 0.5, color=_LAZY, alpha=0.16, linewidth=0, zorder=0.5)
    dots = [(block.block, value) for block in record.blocks for value in values(block)]
    looks: dict[str, Any] = {"s": 16, "color": _HEAD, "linewidths": 0, "alpha": 0.85}
    axes.scatter(*zip(*dots, strict=True), label="a head", zorder=3, clip_on=False, **looks)
    tops = [max(values(block)) for block in record.blocks]
    line: dict[str, Any] = {"color": _STRONGEST, "marker": "o", "markersize": 4.5}
    axes.plot(numbers, tops, label="strongest head of the block", zorder=4, clip_on=False, **line)
    axes.set_xlim(-0.5, len(numbers) - 0.5)
    axes.set_xticks(numbers[:: max(1, len(numbers) // 20)])
    axes.axhline(even, color=plots.INK, linewidth=1, linestyle=(0, (1, 2)))
    right = (axes.get_xlim()[1], even)
    shown = f"even attention\n{even:g}"
    plots.note_at(axes, shown, right, (5, 0), ha="left", va="center")
    _log_scale(axes, record.text.max_seq_length)


def _log_scale(axes: Axes, highest: int) -> None:
    """From 1 to the length of the windows: what matters happens near 1."""
    axes.set_yscale("log")
    axes.set_ylim(0.9, 1.1 * max(highest, 2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.grid(axis="y")


def _name_lazy(axes: Axes, lazy: Sequence[int]) -> None:
    """The word above the shade of each run of lazy blocks, while there are few of them."""
    runs = attention_words.runs(lazy)
    for first, last in runs if len(runs) <= _NAMED_RUNS else ():
        name = f"lazy: {attention_words.block_runs(range(first, last + 1))}"
        place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "weight": "bold"}
        plots.note_at(axes, name, ((first + last) / 2, 1.0), (0, 3), color=_LAZY, **place)


def _blocks_alt(record: AttentionRecord) -> str:
    shown = "; ".join(
        f"block {block.block} rank {attention_words.format_mean(block.max_rank)}, "
        f"column mass {attention_words.format_mean(block.max_mass)}"
        for block in record.blocks
    )
    lazy = attention_words.block_runs(record.lazy) if record.lazy else "none"
    return f"Strongest head by block: {shown}. Lazy blocks: {lazy}."


def heads_svg(record: AttentionRecord) -> str:
    """The mean rank of every head: heads are rows, blocks columns; lazy blocks have a frame.

    Ranks are written into the cells while they fit, else a scale stands beside the map. Places
    without a head, where blocks have different numbers of them, are grey.
    """
    cells = rank_cells(record)
    num_heads, num_blocks = cells.shape
    written = num_heads <= _WRITTEN_CELLS[0] and num_blocks <= _WRITTEN_CELLS[1]
    norm = LogNorm(1, max(record.text.max_seq_length, 2))
    with plots.drawing(0.8 + min(6.0, (0.34 if written else 0.16) * num_heads)) as figure:
        axes = figure.subplots()
        looks: dict[str, Any] = {"edgecolors": plots.PAPER, "linewidth": 1.2 if written else 0.3}
        mesh = axes.pcolormesh(cells, cmap=_RANK, norm=norm, clip_on=False, **looks)
        axes.set(ylim=(num_heads, 0), xlabel="Block", ylabel="Head")
        axes.spines[:].set_visible(False)
        for axis, count in ((axes.xaxis, num_blocks), (axes.yaxis, num_heads)):
            places = np.arange(count)[:: max(1, count // 16)]
            axis.set_ticks(places + 0.5, map(str, places))
        if written:
            _write_cells(axes, cells, norm)
        else:
            scale = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=14)
            scale.outline.set_visible(False)
            scale.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for first, last in attention_words.runs(record.lazy):
            frame = Rectangle((first, 0), last + 1 - first, num_heads, fill=False)
            frame.set(edgecolor=plots.INK, linewidth=2, clip_on=False)
            axes.add_patch(frame)
        return plots.as_svg(figure, _heads_alt(record))


def rank_cells(record: AttentionRecord) -> NDArray[np.float64]:
    """Mean ranks [heads, blocks]; NaN where a block has fewer heads than another."""
    num_heads = max(len(block.ranks) for block in record.blocks)
    cells = np.full((num_heads, len(record.blocks)), np.nan)
    for column, block in enumerate(record.blocks):
        cells[: len(block.ranks), column] = block.ranks
    return cells


def _write_cells(axes: Axes, cells: NDArray[np.float64], norm: LogNorm) -> None:
    for (row, column), value in np.ndenumerate(cells):
        if np.isnan(value):
            continue
        shade = float(norm(value))
        colour = plots.ON_LIGHT if 0.12 < shade < 0.85 else plots.ON_DARK
        shown = attention_words.format_mean(float(value))
        place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5}
        axes.text(column + 0.5, row + 0.5, shown, color=colour, **place)


def _heads_alt(record: AttentionRecord) -> str:
    shown = (
        f"block {block.block} {', '.join(map(attention_words.format_mean, block.ranks))}"
        for block in record.blocks
    )
    return f"Mean rank by head: {'; '.join(shown)}."
