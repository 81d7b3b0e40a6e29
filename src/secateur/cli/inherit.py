"""`secateur inherit`: a smaller model from a model's first blocks (Inheritune)."""

from dataclasses import asdict
from typing import Annotated, get_args

import typer

from secateur.cli.loading import Loading
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import ModelArgument, Output, Overwrite
from secateur.cli.train import train
from secateur.cli.training_options import Resume, TrainingOptions
from secateur.recipe.inherit_stage import InheritedPart, Optimizer, Start


@with_option_groups
def inherit_command(
    model: ModelArgument,
    *,
    output: Output,
    blocks: Annotated[int, typer.Option(help="Number of MODEL's first blocks to begin with.")],
    grow_by: Annotated[int, typer.Option(help="Blocks that each further round adds.")] = 2,
    max_blocks: Annotated[
        int | None,
        typer.Option(
            help="Stop growing at this many. Default: one fewer than MODEL has.", show_default=False
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Stop when the loss is within this of MODEL's, in nats.")
    ] = 0.0,
    start: Annotated[
        str, typer.Option(help=f"{', '.join(get_args(Start))}: the others are baselines.")
    ] = "inherited",
    part: Annotated[
        str, typer.Option(help=f"What blocks inherit: {', '.join(get_args(InheritedPart))}.")
    ] = "both",
    optimizer: Annotated[
        str, typer.Option(help=f"AdamW between rounds: {', '.join(get_args(Optimizer))}.")
    ] = "restarted",
    training: TrainingOptions,
    resume: Resume = False,
    overwrite: Overwrite = False,
    loading: Loading,
) -> None:
    """Build a smaller model from MODEL's first blocks, train it, and grow it until it is as good.

    --num-tokens and --epochs are those of each round.
    """
    loss = "distillation" if start == "distilled" else "cross_entropy"
    stage = {
        "stage": "inherit",
        "blocks": blocks,
        "grow_by": grow_by,
        "max_blocks": max_blocks,
        "tolerance": tolerance,
        "start": start,
        "part": part,
        "optimizer": optimizer,
        "training": asdict(training) | {"loss": loss},
    }
    train(model, stage, output, loading, overwrite=overwrite, resume=resume)
