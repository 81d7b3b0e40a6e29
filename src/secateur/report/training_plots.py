"""Curves of trainings as pictures: loss against tokens, with the line of the model aimed at."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from secateur.report.plots import FAMILY_COLOURS, INK, MUTED, as_svg, drawing, note_at
from secateur.report.training_record import InheritRecord, RecoverRecord, TrainingPoint

_CURVE = FAMILY_COLOURS["sparsegpt"]
_TRAINED = FAMILY_COLOURS["wanda"]


def recover_svg(stage: RecoverRecord) -> str:
    """Held-out and training loss against tokens, and the dense model's loss as a line."""
    with drawing(3.1) as figure:
        axes = figure.subplots()
        _curve(axes, stage.run.points, 0, stage.minimised)
        if stage.dense_loss is not None:
            _line(axes, stage.dense_loss, "dense")
        kept = next((p for p in stage.run.points if p.step == stage.run.kept_step), None)
        if kept is not None and math.isfinite(kept.held_out_loss):
            place = (kept.num_tokens / 1e6, kept.held_out_loss)
            axes.plot(*place, "o", color=_CURVE, markersize=6)
            note_at(axes, f"kept: {kept.held_out_loss:.3f}", place, (0, 7))
        _label(axes)
        shown = ", ".join(f"{p.num_tokens:,}: {p.held_out_loss:.4f}" for p in stage.run.points)
        dense = "" if stage.dense_loss is None else f" The dense model: {stage.dense_loss:.4f}."
        return as_svg(figure, f"Loss on held-out text by tokens trained on: {shown}.{dense}")


def inherit_svg(stage: InheritRecord) -> str:
    """Loss against tokens through all rounds, and the parent's loss as a line."""
    with drawing(3.1) as figure:
        axes = figure.subplots()
        before, heights = 0, list[float]()
        for entry in stage.rounds:
            _curve(axes, entry.run.points, before, stage.minimised)
            losses = [point.held_out_loss for point in entry.run.points]
            heights += [loss for loss in losses if math.isfinite(loss)]
            if before:
                axes.axvline(before / 1e6, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            before += entry.run.num_tokens
        before = 0
        for entry in stage.rounds:
            top = (before / 1e6, max(heights, default=0.0))
            note_at(axes, f"{entry.num_blocks} blocks", top, (4, 2), ha="left", color=MUTED)
            before += entry.run.num_tokens
        _line(axes, stage.parent_loss, f"parent, {stage.parent_blocks} blocks")
        _label(axes)
        shown = "; ".join(
            f"{entry.num_blocks} blocks: {entry.run.loss_before:.4f} to {entry.run.loss_after:.4f}"
            for entry in stage.rounds
        )
        return as_svg(figure, f"Loss by round: {shown}. The parent: {stage.parent_loss:.4f}.")


def _curve(axes: Axes, points: Sequence[TrainingPoint], tokens_before: int, minimised: str) -> None:
    first = not axes.lines
    places = [(point.num_tokens + tokens_before) / 1e6 for point in points]
    losses = [point.held_out_loss for point in points]
    label = "held out" if first else None
    axes.plot(places, losses, "-", color=_CURVE, marker=".", linewidth=1.6, label=label)
    trained = [
        (x, p.train_loss) for x, p in zip(places, points, strict=True) if p.train_loss is not None
    ]
    # Losses of another kind do not stand on this axis.
    if trained and minimised == "cross_entropy":
        label = "trained on" if first else None
        axes.plot(*zip(*trained, strict=True), "-", color=_TRAINED, linewidth=1.0, label=label)


def _line(axes: Axes, loss: float, name: str) -> None:
    if not math.isfinite(loss):
        return
    axes.axhline(loss, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    place = (axes.get_xlim()[1], loss)
    note_at(axes, f"{name}\n{loss:.3f}", place, (5, 0), ha="left", va="center")


def _label(axes: Axes) -> None:
    axes.set(xlabel="Tokens trained on (millions)", ylabel="Loss (nats a token)")
    axes.grid(axis="y")
    axes.margins(x=0.02)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
