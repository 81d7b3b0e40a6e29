"""Options that the commands which train share, worded once."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, get_args

import typer

from secateur.recipe import Training
from secateur.recipe.training import DataFormat, Loss, Precision, Schedule

_DATA, _LENGTH, _OPTIMIZER = "Data", "Length", "Loss and optimizer"

Data = Annotated[
    list[str],
    typer.Option(
        help="Text to train on: text file, folder, JSON lines, or dataset name[:config[:split]]. "
        "Repeatable.",
        rich_help_panel=_DATA,
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--data-format",
        help=f"{', '.join(get_args(DataFormat))}: chat trains on responses only.",
        rich_help_panel=_DATA,
    ),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        help="Text to measure the loss on. Default: windows held out of the data.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
HeldOut = Annotated[
    int, typer.Option(help="Windows that the loss is measured on.", rich_help_panel=_DATA)
]
Streaming = Annotated[
    bool,
    typer.Option("--streaming", help="Tokenise while training.", rich_help_panel=_DATA),
]
MaxSeqLength = Annotated[int, typer.Option(help="Tokens in a window.", rich_help_panel=_DATA)]
NumTokens = Annotated[
    int | None,
    typer.Option(
        help="To train on. Default: the data, --epochs times.",
        show_default=False,
        rich_help_panel=_LENGTH,
    ),
]
Epochs = Annotated[float, typer.Option(help="Times the data.", rich_help_panel=_LENGTH)]
BatchSize = Annotated[
    int, typer.Option(help="Windows a step on one device.", rich_help_panel=_LENGTH)
]
GradientAccumulation = Annotated[
    int, typer.Option(help="Batches that share a step.", rich_help_panel=_LENGTH)
]
EvalSteps = Annotated[
    int,
    typer.Option(
        help="Steps between evaluations, with a checkpoint each.", rich_help_panel=_LENGTH
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Stop after so many evaluations without a better loss.",
        show_default=False,
        rich_help_panel=_LENGTH,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Peak. Default: by method.", show_default=False, rich_help_panel=_OPTIMIZER),
]
ScheduleOption = Annotated[
    str, typer.Option("--schedule", help=", ".join(get_args(Schedule)), rich_help_panel=_OPTIMIZER)
]
LossOption = Annotated[
    str,
    typer.Option(
        "--loss",
        help=f"{', '.join(get_args(Loss))} (of the dense model's distribution).",
        rich_help_panel=_OPTIMIZER,
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help=f"Of products: {', '.join(get_args(Precision))}.",
        rich_help_panel=_OPTIMIZER,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run."),
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]


def training_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe's `training`, out of a command's arguments by name."""
    named = {**given, "format": given["data_format"]}
    return {field.name: named[field.name] for field in fields(Training) if field.name in named}
