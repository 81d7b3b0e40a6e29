"""`secateur recover`: train a compressed model until its quality is back."""

from typing import Annotated, get_args

import typer
from rich.console import Console

from secateur.cli import training_options as options
from secateur.cli.options import Device, Dtype, ModelArgument, Revision, TrustRemoteCode
from secateur.compress import compress_with_report
from secateur.recipe import RecoverMethod, recipe_from_dict
from secateur.report.table import report_table


def recover_command(
    model: ModelArgument,
    output: options.Output,
    data: options.Data,
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
    evaluation: options.Evaluation = None,
    held_out: options.HeldOut = 64,
    data_format: options.Format = "auto",
    streaming: options.Streaming = False,
    max_seq_length: options.MaxSeqLength = 512,
    num_tokens: options.NumTokens = None,
    epochs: options.Epochs = 1.0,
    batch_size: options.BatchSize = 8,
    gradient_accumulation: options.GradientAccumulation = 1,
    eval_steps: options.EvalSteps = 100,
    patience: options.Patience = None,
    learning_rate: options.LearningRate = None,
    schedule: options.ScheduleOption = "cosine",
    loss: options.LossOption = "cross_entropy",
    precision: options.PrecisionOption = "auto",
    seed: options.Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train part of MODEL on text, and write the result. Zeros stay zero, factors factors.

    On several GPUs: accelerate launch -m secateur recover ...
    """
    training = options.training_values(locals())
    recipe = recipe_from_dict(
        {
            "stages": [
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
        },
        "the command line",
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
