"""Records of trainings: plausible, small, and the same on every call."""

from collections.abc import Sequence
from typing import Any

from secateur.report.training_record import (
    DataRecord,
    InheritRecord,
    InheritRound,
    RecoverRecord,
    TrainingPoint,
    TrainingRun,
)


def data(**changes: Any) -> DataRecord:
    values: dict[str, Any] = {
        "source": "books.txt",
        "num_windows": 1900,
        "max_seq_length": 512,
        "tokens_sha256": "5f" * 32,
        "held_out_source": "evaluation.txt",
        "num_held_out_windows": 64,
    }
    return DataRecord(**{**values, **changes})


def point(step: int, held_out: float, trained: float | None = None) -> TrainingPoint:
    return TrainingPoint(
        step=step,
        num_tokens=4096 * step,
        seconds=1.5 * step,
        train_loss=trained,
        held_out_loss=held_out,
    )


def run(losses: Sequence[float] = (5.25, 4.5, 4.25, 4.125), **changes: Any) -> TrainingRun:
    """Evaluated every hundred steps."""
    points = [
        point(100 * place, loss, loss - 0.0625 if place else None)
        for place, loss in enumerate(losses)
    ]
    steps = points[-1].step
    values: dict[str, Any] = {
        "data": data(),
        "points": tuple(points),
        "num_trained_parameters": 4_227_072,
        "num_steps": steps,
        "num_tokens": 4096 * steps,
        "seconds": 1.5 * steps,
        "loss_before": losses[0],
        "loss_after": losses[-1],
        "kept_step": steps,
        "ending": "finished",
    }
    return TrainingRun(**{**values, **changes})


def recover(losses: Sequence[float] = (5.25, 4.5, 4.25, 4.125), **changes: Any) -> RecoverRecord:
    run_changes = changes.pop("run_changes", {})
    values: dict[str, Any] = {
        "method": "gates",
        "learning_rate": 1e-3,
        "run": run(losses, **run_changes),
        "dense_loss": 3.75,
        "seconds": 500.0,
    }
    return RecoverRecord(**{**values, **changes})


def inherit(*rounds: InheritRound, **changes: Any) -> InheritRecord:
    default = (
        InheritRound(num_blocks=4, run=run((4.5, 4.25, 4.0))),
        InheritRound(num_blocks=6, run=run((3.9375, 3.8125, 3.6875))),
    )
    values: dict[str, Any] = {
        "start": "inherited",
        "part": "both",
        "learning_rate": 1e-3,
        "parent_blocks": 8,
        "parent_loss": 3.75,
        "tolerance": 0.0,
        "rounds": rounds or default,
        "seconds": 900.0,
    }
    return InheritRecord(**{**values, **changes})
