"""How much of a dropped model's quality training wins back, by what is trained.

    python -m bench.recovery --data TEXTS --evaluation TEXT

Blocks of least influence are dropped once; then every method trains the same dropped model on the
same tokens in the same order. The loss is measured on windows of a text of its own, and the weights
of the last step are what is reported: nothing is chosen by it. One record a method.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from bench.records import append_record
from secateur.checkpoint.load import silence_transformers
from secateur.compress import compress_with_report
from secateur.plain import to_plain
from secateur.recipe.recover_stage import DEFAULT_LEARNING_RATE
from secateur.report.training_record import RecoverRecord

METHODS = ("gates", "linears", "all", "lora", "head_and_last_blocks")


def main(
    data: Annotated[list[str], typer.Option(help="Texts to train on. Repeatable.")],
    evaluation: Annotated[str, typer.Option(help="Text to measure the loss on.")],
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    calibration: Annotated[
        str, typer.Option(help="Text to measure Block Influence on.")
    ] = "examples/books-8m/calibration.txt",
    drop: Annotated[int, typer.Option(help="Blocks to drop.")] = 2,
    methods: Annotated[str, typer.Option(help="Between commas.")] = ",".join(METHODS),
    loss: Annotated[str, typer.Option(help="cross_entropy or distillation.")] = "distillation",
    num_tokens: Annotated[int, typer.Option(help="To train on, for every method.")] = 1_500_000,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    held_out: Annotated[int, typer.Option(help="Windows to measure on.")] = 128,
    rates: Annotated[
        str | None, typer.Option(help="method=rate, between commas.", show_default=False)
    ] = None,
    evaluations: Annotated[int, typer.Option(help="Points of the curve.")] = 12,
    purpose: Annotated[str, typer.Option(help="Kept in the record.")] = "methods",
    precision: Annotated[str, typer.Option(help="Of products.")] = "bfloat16",
) -> None:
    silence_transformers()
    given = dict(item.split("=") for item in rates.split(",")) if rates else {}
    with TemporaryDirectory() as scratch:
        dropped = Path(scratch) / "dropped"
        compress_with_report(
            model,
            {"stages": [{"stage": "drop_blocks", "count": drop}]},
            calibration=calibration,
            output=dropped,
            num_calibration_samples=64,
            max_seq_length=length,
        )
        for method in methods.split(","):
            rate = float(given.get(method, DEFAULT_LEARNING_RATE[method]))  # type: ignore[index]
            training = {
                "data": data,
                "evaluation": evaluation,
                "held_out": held_out,
                "max_seq_length": length,
                "num_tokens": num_tokens,
                "batch_size": batch_size,
                "learning_rate": rate,
                "loss": loss,
                "precision": precision,
                "keep_best": False,
                "eval_steps": max(1, num_tokens // (batch_size * length) // evaluations),
            }
            stage = {"stage": "recover", "method": method, "teacher": model, "training": training}
            _, report = compress_with_report(dropped, {"stages": [stage]})
            _record(report.stages[0], model, drop, loss, purpose)


def _record(stage: Any, model: str, drop: int, loss: str, purpose: str) -> None:
    assert isinstance(stage, RecoverRecord)
    run = stage.run
    append_record(
        "recovery",
        {
            "purpose": purpose,
            "model": Path(model).name,
            "dropped_blocks": drop,
            "method": stage.method,
            "loss": loss,
            "learning_rate": stage.learning_rate,
            "num_trained_parameters": run.num_trained_parameters,
            "num_tokens": run.num_tokens,
            "seconds_of_steps": run.seconds,
            "dense_loss": stage.dense_loss,
            "loss_before": run.loss_before,
            "loss_after": run.loss_after,
            "recovered": stage.recovered,
            "data": _names(run.data.source),
            "evaluation": _names(run.data.held_out_source),
            "num_held_out_windows": run.data.num_held_out_windows,
            "max_seq_length": run.data.max_seq_length,
            "points": to_plain(run.points),
        },
    )
    print(
        f"{stage.method} ({loss}): {run.loss_before:.4f} -> {run.loss_after:.4f}, dense "
        f"{stage.dense_loss:.4f}, recovered {stage.recovered:.0%} in {run.seconds:.0f} s of steps"
    )


def _names(source: str) -> str:
    return ", ".join(Path(part).name for part in source.split(", "))


if __name__ == "__main__":
    typer.run(main)
