"""What the regional optimizer won back, block by block, as a picture."""

import math
from collections.abc import Sequence

from secateur.errors import SecateurError
from secateur.report import plots, table
from secateur.report.record import BlockRecord

_PRUNED = plots.FAMILY_COLOURS["magnitude"]
_TUNED = plots.FAMILY_COLOURS["sparsegpt"]
_MOST_LABELS = 16


def tuning_svg(blocks: Sequence[BlockRecord], pruned_by: str) -> str:
    """Relative output error by block: after its matrices were pruned, and after it was tuned.

    Before it was pruned a block's error is zero: it is measured against itself on the same inputs.
    Errors that are not finite have no bar, and stand in the alternative text alone.

    Args:
        blocks: those that were tuned.
        pruned_by: what chose masks and weights before.

    Raises:
        SecateurError: no block was tuned.
    """
    tuned = [block for block in blocks if block.error_before_tuning is not None]
    if not tuned:
        raise SecateurError("expected a block that was tuned, got none")
    before = [_known(block.error_before_tuning) for block in tuned]
    after = [_known(block.output_error) for block in tuned]
    with plots.drawing(2.9) as figure:
        axes = figure.subplots()
        for values, offset, colour, label in (
            (before, -0.2, _PRUNED, f"after {pruned_by}"),
            (after, 0.2, _TUNED, "after the regional optimizer"),
        ):
            heights = [100 * value if math.isfinite(value) else 0.0 for value in values]
            places = [number + offset for number in range(len(tuned))]
            bars = axes.bar(places, heights, 0.38, color=colour, label=label)
            if len(tuned) <= _MOST_LABELS:
                axes.bar_label(bars, list(map(_percent, values)), padding=2, fontsize=8.5)
        step = max(1, len(tuned) // 20)
        names = [str(block.block) for block in tuned]
        axes.set_xticks(range(0, len(tuned), step), names[::step])
        axes.set(xlabel="Block (from 0)", ylabel="Output error\n(% of the dense output)")
        axes.grid(axis="y")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        pairs = zip(names, before, after, strict=True)
        shown = ", ".join(f"{name}: {_percent(b)} to {_percent(a)}" for name, b, a in pairs)
        return plots.as_svg(figure, f"Output error in % by block, pruned and tuned: {shown}.")


def _known(error: float | None) -> float:
    return math.nan if error is None else error


def _percent(error: float) -> str:
    return table.format_number(100 * error, 1)
