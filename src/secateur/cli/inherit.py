"""`secateur inherit`: a smaller model from a model's first blocks (Inheritune)."""

from typing import Annotated, get_args

import typer
from rich.console import Console

from secateur.cli.options import (
    Device,
    Dtype,
    ModelArgument,
    Output,
    Overwrite,
    Revision,
    TrustRemoteCode,
)
from secateur.cli.stage_options import recipe_of_stages
from secateur.cli.training_options import (
    BatchSize,
    Data,
    Epochs,
    EvalSteps,
    Evaluation,
    Format,
    GradientAccumulation,
    HeldOut,
    LearningRate,
    MaxSeqLength,
    NumTokens,
    Patience,
    PrecisionOption,
    Resume,
    ScheduleOption,
    Seed,
    Streaming,
    training_values,
)
from secateur.compress import compress_with_report
from secateur.recipe.inherit_stage import InheritedPart, Optimizer, Start
from secateur.report.table import report_table


def inherit_command(
    model: ModelArgument,
    output: Output,
    data: Data,
    blocks: Annotated[int, typer.Option(help="First blocks that the smaller model begins with.")],
    grow_by: Annotated[int, typer.Option(help="Blocks that each further round adds.")] = 2,
    max_blocks: Annotated[
        int | None,
        typer.Option(help="Stop growing at. Default: one less than MODEL.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Done when the loss is within this of MODEL's, in nats.")
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
    evaluation: Evaluation = None,
    held_out: HeldOut = 64,
    data_format: Format = "auto",
    streaming: Streaming = False,
    max_seq_length: MaxSeqLength = 512,
    num_tokens: NumTokens = None,
    epochs: Epochs = 1.0,
    batch_size: BatchSize = 8,
    gradient_accumulation: GradientAccumulation = 1,
    eval_steps: EvalSteps = 100,
    patience: Patience = None,
    learning_rate: LearningRate = None,
    schedule: ScheduleOption = "cosine",
    precision: PrecisionOption = "auto",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Build a smaller model from MODEL's first blocks, train it, and grow it until it is as good.

    --num-tokens and --epochs are those of each round.
    """
    training = training_values(locals())
    if start == "distilled":
        training["loss"] = "distillation"
    recipe = recipe_of_stages(
        [
            {
                "stage": "inherit",
                "blocks": blocks,
                "grow_by": grow_by,
                "max_blocks": max_blocks,
                "tolerance": tolerance,
                "start": start,
                "part": part,
                "optimizer": optimizer,
                "training": training,
            }
        ]
    )
    _, report = compress_with_report(
        model,
        recipe,
        output=output,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
        resume=resume,
    )
    console = Console(emoji=False)
    console.print(report_table(report))
    console.print(f"wrote {output}", highlight=False, soft_wrap=True, markup=False)
