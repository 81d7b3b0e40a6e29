"""What removing blocks costs, as a picture."""

import math
from collections.abc import Sequence

from secateur.errors import SecateurError
from secateur.report import plots, table


def removal_svg(perplexities: Sequence[float], order: Sequence[int], what: str = "block") -> str:
    """Perplexity against how many blocks went; each point names the block that went last.

    Perplexities that are not finite have no point, and stand in the alternative text alone. A scale
    of powers of ten is used where the largest is more than ten times the least.

    Args:
        perplexities: with nothing removed, after the first removal, and so on.
        order: the blocks, the first to go first.
        what: what went of each.

    Raises:
        SecateurError: none is finite.
    """
    known = [(i, value) for i, value in enumerate(perplexities) if math.isfinite(value)]
    if not known:
        raise SecateurError("expected a perplexity that is finite, got none")
    colour = plots.FAMILY_COLOURS["depth"]
    with plots.drawing(2.9) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=5, linewidth=1.6)
        values = [value for _, value in known]
        if max(values) > 10 * min(values):
            axes.set_yscale("log")
        axes.axhline(values[0], color=plots.MUTED, linewidth=1, linestyle=(0, (5, 3)))
        for place, value in known:
            name = "dense" if place == 0 else f"− {order[place - 1]}"
            plots.note_at(axes, f"{name}\n{table.format_number(value)}", (place, value), (0, 6))
        axes.set_xticks(range(len(perplexities)))
        axes.set_xlim(-0.4, len(perplexities) - 0.6)
        axes.margins(y=0.3)
        axes.set_xlabel(f"Removed, {what} by {what}")
        axes.set_ylabel("Perplexity on the\ncalibration tokens")
        axes.grid(axis="y")
        shown = ", ".join(f"{i}: {table.format_number(v)}" for i, v in enumerate(perplexities))
        return plots.as_svg(figure, f"Perplexity by number of removals: {shown}.")
