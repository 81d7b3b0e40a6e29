"""`secateur recover`: train a compressed model until its quality is back."""

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
    LossOption,
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
from secateur.recipe import RecoverMethod
from secateur.report.table import report_table


def recover_command(
    model: ModelArgument,
    output: Output,
    data: Data,
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
        typer.Option(help="Only blocks at most this far from dropped ones.", show_default=False),
    ] = None,
    last_blocks: Annotated[int, typer.Option(help="For head_and_last_blocks.")] = 3,
    lora_rank: Annotated[int, typer.Option(help="For lora.")] = 8,
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
    loss: LossOption = "cross_entropy",
    precision: PrecisionOption = "auto",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train part of MODEL on text, and write the result. Zeros stay zero, factors factors.

    On several GPUs: accelerate launch -m secateur recover ...
    """
    training = training_values(locals())
    recipe = recipe_of_stages(
        [
            {
                "stage": "recover",
                "method": method,
                "teacher": teacher,
                "near_cut": near_cut,
                "last_blocks": last_blocks,
                "lora_rank": lora_rank,
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
