"""`secateur compress`: run a recipe, write the checkpoint, say what it cost and bought."""

from dataclasses import asdict, astuple
from typing import cast

from rich.console import Console

from secateur.checkpoint.form import CheckpointFormat
from secateur.cli.compress_options import (
    Activations,
    CalibrationOptions,
    DropOptions,
    DryRun,
    EvaluationText,
    FormatName,
    RecipeFile,
    Resume,
    StageOptions,
    Stream,
)
from secateur.cli.compress_recipe import recipe_of
from secateur.cli.compress_stream import (
    StreamedRun,
    estimate_table,
    require_no_streaming,
    require_streamable,
)
from secateur.cli.loading import Loading
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import ModelArgument, Output, Overwrite
from secateur.cli.written import show_report
from secateur.compress import compress_with_report
from secateur.prepare import CalibrationChoice
from secateur.streaming.activations import Home


@with_option_groups
def compress_command(
    model: ModelArgument,
    *,
    output: Output,
    recipe: RecipeFile = None,
    stage: StageOptions,
    drop: DropOptions,
    calibration: CalibrationOptions,
    text: EvaluationText = None,
    checkpoint_format: FormatName = "auto",
    loading: Loading,
    overwrite: Overwrite = False,
    stream: Stream = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    activations: Activations = "auto",
) -> None:
    """Compress MODEL and write a Hugging Face folder with a report."""
    chosen = recipe_of(recipe, drop, stage)
    if stream or dry_run:
        require_streamable(text, loading.trust_remote_code, resume and dry_run)
        streamed = StreamedRun(
            model,
            chosen,
            CalibrationChoice(*astuple(calibration)),
            output,
            loading.device,
            loading.dtype,
            loading.revision,
            overwrite,
            cast(CheckpointFormat, checkpoint_format),
            cast(Home, activations),
        )
        if dry_run:
            Console(emoji=False).print(estimate_table(streamed.estimate()))
            return
        report = streamed.run(resume)
    else:
        require_no_streaming(activations)
        _, report = compress_with_report(
            model,
            chosen,
            output=output,
            overwrite=overwrite,
            checkpoint_format=cast(CheckpointFormat, checkpoint_format),
            evaluation_text=text,
            resume=resume,
            **asdict(calibration),
            **asdict(loading),
        )
    show_report(report, output)
