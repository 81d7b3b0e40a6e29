"""The curve of a training, out of what the Trainer logged."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from secateur.report.training_record import TrainingPoint


def curve(history: Sequence[Mapping[str, float]], loss_before: float) -> tuple[TrainingPoint, ...]:
    """A point for the beginning and one for every evaluation.

    Args:
        history: the Trainer's `log_history`: entries with `loss` or with `eval_loss`.
        loss_before: on the held-out windows.
    """
    points = [
        TrainingPoint(step=0, num_tokens=0, seconds=0.0, train_loss=None, held_out_loss=loss_before)
    ]
    losses: list[float] = []
    weights: list[float] = []
    last_step = 0.0
    for entry in history:
        if "loss" in entry:
            losses.append(entry["loss"])
            weights.append(entry["step"] - last_step)
            last_step = entry["step"]
        elif "eval_loss" in entry:
            step = int(entry["step"])
            points.append(
                TrainingPoint(
                    step=step,
                    num_tokens=int(entry["num_input_tokens_seen"]),
                    seconds=entry["step_seconds"],
                    train_loss=fmean(losses, weights) if losses else None,
                    held_out_loss=entry["eval_loss"],
                )
            )
            losses, weights = [], []
    return tuple(points)
