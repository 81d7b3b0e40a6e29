"""Options that the commands which train share, worded once."""

from dataclasses import dataclass
from typing import Annotated, get_args

import typer

from secateur.recipe.training import DataFormat, Loss, Precision, Schedule

_DATA, _LENGTH, _OPTIMIZER = "Data", "Length", "Loss and optimizer"

LossOption = Annotated[
    str,
    typer.Option(
        "--loss",
        help=f"{', '.join(get_args(Loss))} (of the dense model's distribution).",
        rich_help_panel=_OPTIMIZER,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue from the last checkpoint of an interrupted run."),
]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Those that set a recipe's `training`, under the same names."""

    data: Annotated[
        list[str],
        typer.Option(
            help="Text to train on: text file, folder, JSON lines, or dataset "
            "name[:config[:split]]. Repeatable.",
            rich_help_panel=_DATA,
        ),
    ]
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="Text to measure the loss on. Default: windows held out of the data.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None
    held_out: Annotated[
        int, typer.Option(help="Windows to measure the loss on.", rich_help_panel=_DATA)
    ] = 64
    format: Annotated[
        str,
        typer.Option(
            "--data-format",
            help=f"{', '.join(get_args(DataFormat))}: chat trains on responses only.",
            rich_help_panel=_DATA,
        ),
    ] = "auto"
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Tokenise while training.", rich_help_panel=_DATA),
    ] = False
    max_seq_length: Annotated[
        int, typer.Option(help="Tokens in a window.", rich_help_panel=_DATA)
    ] = 512
    num_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens to train on. Default: the data, --epochs times.",
            show_default=False,
            rich_help_panel=_LENGTH,
        ),
    ] = None
    epochs: Annotated[
        float, typer.Option(help="Passes over the data.", rich_help_panel=_LENGTH)
    ] = 1.0
    batch_size: Annotated[
        int, typer.Option(help="Windows per step on one device.", rich_help_panel=_LENGTH)
    ] = 8
    gradient_accumulation: Annotated[
        int, typer.Option(help="Batches per optimizer step.", rich_help_panel=_LENGTH)
    ] = 1
    eval_steps: Annotated[
        int,
        typer.Option(
            help="Steps between evaluations; each writes a checkpoint.", rich_help_panel=_LENGTH
        ),
    ] = 100
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many evaluations without a better loss.",
            show_default=False,
            rich_help_panel=_LENGTH,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. Default: by method.",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None
    schedule: Annotated[
        str,
        typer.Option(
            help=f"Schedule of the learning rate: {', '.join(get_args(Schedule))}.",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = "cosine"
    precision: Annotated[
        str,
        typer.Option(
            help=f"Precision of products: {', '.join(get_args(Precision))}.",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = "auto"
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0
