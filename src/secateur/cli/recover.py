"""`secateur recover`: train a compressed model until its quality is back."""

from dataclasses import asdict
from typing import Annotated, get_args

import typer

from secateur.cli.loading import Loading
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import ModelArgument, Output, Overwrite
from secateur.cli.train import train
from secateur.cli.training_options import LossOption, Resume, TrainingOptions
from secateur.recipe import RecoverMethod


@with_option_groups
def recover_command(
    model: ModelArgument,
    *,
    output: Output,
    method: Annotated[
        str, typer.Option(help=f"What is trained: {', '.join(get_args(RecoverMethod))}.")
    ] = "gates",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The dense model, to compare with and to learn from. Default: the one that MODEL "
            "was made from, if it is still there.",
            show_default=False,
        ),
    ] = None,
    near_cut: Annotated[
        int | None,
        typer.Option(
            help="Train only blocks at most this far from dropped ones.", show_default=False
        ),
    ] = None,
    last_blocks: Annotated[int, typer.Option(help="Blocks that head_and_last_blocks trains.")] = 3,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters of lora.")] = 8,
    training: TrainingOptions,
    loss: LossOption = "cross_entropy",
    resume: Resume = False,
    overwrite: Overwrite = False,
    loading: Loading,
) -> None:
    """Train part of MODEL on text and write the result; zeros and factors stay such.

    On several GPUs: accelerate launch -m secateur recover ...
    """
    stage = {
        "stage": "recover",
        "method": method,
        "teacher": teacher,
        "near_cut": near_cut,
        "last_blocks": last_blocks,
        "lora_rank": lora_rank,
        "training": asdict(training) | {"loss": loss},
    }
    train(model, stage, output, loading, overwrite=overwrite, resume=resume)
