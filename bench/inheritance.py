"""Inheritune against the same final size from other starts, with the same tokens.

    python -m bench.inheritance --data TEXTS --evaluation TEXT

The smaller model begins with the parent's first blocks and grows once. `random` and `distilled`
have the final size from the beginning, and as many tokens as both rounds together; `stacked` grows
as the inherited model does, by copies of its own blocks. One record a start.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.records import append_record
from secateur.checkpoint.load import silence_transformers
from secateur.compress import compress_with_report
from secateur.plain import to_plain
from secateur.report.training_record import InheritRecord

STARTS = ("inherited", "random", "stacked", "attention", "mlp")


def main(
    data: Annotated[list[str], typer.Option(help="Texts to train on. Repeatable.")],
    evaluation: Annotated[str, typer.Option(help="Text to measure the loss on.")],
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    blocks: Annotated[int, typer.Option(help="In the first round.")] = 4,
    final_blocks: Annotated[int, typer.Option(help="In the second and last round.")] = 6,
    starts: Annotated[str, typer.Option(help="Between commas.")] = ",".join(STARTS),
    num_tokens: Annotated[int, typer.Option(help="Of both rounds together.")] = 1_000_000,
    learning_rate: Annotated[float, typer.Option(help="Of what is inherited.")] = 1e-3,
    new_rate: Annotated[float, typer.Option(help="Of what begins at random.")] = 2.5e-3,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    held_out: Annotated[int, typer.Option(help="Windows to measure on.")] = 128,
    precision: Annotated[str, typer.Option(help="Of products.")] = "bfloat16",
) -> None:
    silence_transformers()
    for start in starts.split(","):
        grows = start not in ("random", "distilled")
        tokens = num_tokens // 2 if grows else num_tokens
        steps = max(1, tokens // (batch_size * length))
        is_part = start in ("attention", "mlp")
        training = {
            "data": data,
            "evaluation": evaluation,
            "held_out": held_out,
            "max_seq_length": length,
            "num_tokens": tokens,
            "batch_size": batch_size,
            "learning_rate": learning_rate if start == "inherited" or is_part else new_rate,
            "precision": precision,
            "keep_best": False,
            "eval_steps": max(1, steps // 6),
            "loss": "distillation" if start == "distilled" else "cross_entropy",
        }
        stage = {
            "stage": "inherit",
            "blocks": blocks if grows else final_blocks,
            "grow_by": final_blocks - blocks,
            "max_blocks": final_blocks,
            "start": "inherited" if is_part else start,
            "part": start if is_part else "both",
            "training": training,
        }
        _, report = compress_with_report(model, {"stages": [stage]})
        _record(report.stages[0], start, model)


def _record(stage: Any, start: str, model: str) -> None:
    assert isinstance(stage, InheritRecord)
    rounds = stage.rounds
    append_record(
        "inheritance",
        {
            "model": Path(model).name,
            "start": start,
            "learning_rate": stage.learning_rate,
            "parent_blocks": stage.parent_blocks,
            "parent_loss": stage.parent_loss,
            "blocks": [entry.num_blocks for entry in rounds],
            "num_tokens": sum(entry.run.num_tokens for entry in rounds),
            "loss": stage.loss,
            "evaluation": Path(rounds[-1].run.data.held_out_source).name,
            "data": [Path(name).name for name in rounds[-1].run.data.source.split(", ")],
            "num_held_out_windows": rounds[-1].run.data.num_held_out_windows,
            "max_seq_length": rounds[-1].run.data.max_seq_length,
            "rounds": [
                {"num_blocks": entry.num_blocks, "points": to_plain(entry.run.points)}
                for entry in rounds
            ],
        },
    )
    print(f"{start}: {stage.loss:.4f}, parent {stage.parent_loss:.4f}")


if __name__ == "__main__":
    typer.run(main)
