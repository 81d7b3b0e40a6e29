"""Trainings in words and tables: what was trained, what it won back."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.report.training_record import (
    InheritRecord,
    RecoverRecord,
    TrainingPoint,
    TrainingRun,
)

TrainingRecord = RecoverRecord | InheritRecord
_POINTS_SHOWN = 8


def training_title(stage: TrainingRecord) -> str:
    """What a stage is called in a list of stages."""
    if isinstance(stage, RecoverRecord):
        return f"recover by {stage.method.replace('_', ' ')}"
    sizes = ", ".join(str(entry.num_blocks) for entry in stage.rounds)
    return f"inherit {sizes} of {stage.parent_blocks} blocks ({stage.start})"


def training_words(stage: TrainingRecord) -> str:
    """What a stage did, as part of a sentence."""
    if isinstance(stage, InheritRecord):
        reached = "reached" if stage.matched else "did not reach"
        return (
            f"a model of {stage.rounds[-1].num_blocks} of {stage.parent_blocks} blocks "
            f"({stage.start}) trained in {_count(len(stage.rounds), 'round')}: loss "
            f"{stage.loss:.3f}, which {reached} the parent's {stage.parent_loss:.3f}"
        )
    run, method = stage.run, stage.method.replace("_", " ")
    return (
        f"{run.num_trained_parameters:,} parameters trained by {method} on {run.num_tokens:,} "
        f"tokens: loss {run.loss_before:.3f} to {run.loss_after:.3f}{_won(stage)}"
    )


def _won(stage: RecoverRecord) -> str:
    if stage.run.loss_after > stage.run.loss_before:
        return ", worse than before"
    if stage.recovered is None:
        return ""
    return f", which won back {stage.recovered:.0%} of what compression had cost"


def training_facts(stage: TrainingRecord) -> list[str]:
    """Sentences for a page: data, dense model, speed, and how it ended."""
    runs = [stage.run] if isinstance(stage, RecoverRecord) else [r.run for r in stage.rounds]
    last, data = runs[-1], runs[-1].data
    facts = [
        f"{training_words(stage)[0].upper()}{training_words(stage)[1:]}.",
        f"Trained on {data.num_windows:,} windows of {data.max_seq_length} tokens of {data.source} "
        f"with a peak learning rate of {stage.learning_rate:g}; the loss is the mean over "
        f"{data.num_held_out_windows:,} windows of {data.held_out_source} that were not trained "
        "on, in nats a token.",
        f"{last.tokens_per_second:,.0f} tokens a second. The weights of step {last.kept_step} of "
        f"{last.num_steps} were kept.",
    ]
    if isinstance(stage, RecoverRecord) and stage.dense_loss is not None:
        change = stage.run.loss_after - stage.dense_loss
        beside = "above" if change >= 0 else "below"
        facts.append(
            f"The dense model has {stage.dense_loss:.3f} on the same windows: what was recovered "
            f"is {abs(change):.3f} {beside} it (perplexity {_perplexity(stage.run.loss_after):.2f} "
            f"against {_perplexity(stage.dense_loss):.2f})."
        )
    return facts + [f"{run.note[0].upper()}{run.note[1:]}." for run in runs if run.note]


def _perplexity(loss: float) -> float:
    """Infinite where the exponential is beyond what a float holds."""
    return math.exp(loss) if not loss > 700.0 else math.inf


def training_notes(stage: TrainingRecord) -> list[str]:
    """What did not go as it should, with the texts or with the training."""
    run = stage.run if isinstance(stage, RecoverRecord) else stage.rounds[0].run
    return [*run.data.remarks, *stage.warnings]


def training_table(number: int, stage: TrainingRecord) -> RenderableType:
    """The stage for a terminal: the curve of a recovery, the rounds of an inheritance."""
    title = Text(f"Stage {number}: {training_words(stage)}")
    if isinstance(stage, InheritRecord):
        return Group(title, _rounds_table(stage))
    return Group(title, _curve_table(stage.run, stage.dense_loss))


def _curve_table(run: TrainingRun, dense_loss: float | None) -> Table:
    table = _table("Step", "Tokens", "Seconds", "Loss trained on", "Held out", "To dense")
    for point in _some(run.points):
        trained = "–" if point.train_loss is None else f"{point.train_loss:.4f}"
        gap = "–" if dense_loss is None else f"{point.held_out_loss - dense_loss:+.4f}"
        table.add_row(
            f"{point.step:,}",
            f"{point.num_tokens:,}",
            f"{point.seconds:,.0f}",
            trained,
            f"{point.held_out_loss:.4f}",
            gap,
        )
    return table


def _rounds_table(stage: InheritRecord) -> Table:
    table = _table("Round", "Blocks", "Tokens", "Seconds", "Before", "After", "To parent")
    for number, entry in enumerate(stage.rounds, start=1):
        run = entry.run
        table.add_row(
            str(number),
            str(entry.num_blocks),
            f"{run.num_tokens:,}",
            f"{run.seconds:,.0f}",
            f"{run.loss_before:.4f}",
            f"{run.loss_after:.4f}",
            f"{run.loss_after - stage.parent_loss:+.4f}",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _some(points: Sequence[TrainingPoint]) -> list[TrainingPoint]:
    """First, last and evenly spread ones between."""
    if len(points) <= _POINTS_SHOWN:
        return list(points)
    places = {round(i * (len(points) - 1) / (_POINTS_SHOWN - 1)) for i in range(_POINTS_SHOWN)}
    return [point for place, point in enumerate(points) if place in places]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
