"""`secateur compress`: run a recipe, write the checkpoint, say what it cost and bought."""

from typing import cast

from rich.console import Console

from secateur.cli.compress_options import (
    Activations,
    Budget,
    CalibrateAllExperts,
    Calibration,
    CriterionName,
    Cut,
    DropBlocks,
    DryRun,
    EvaluationText,
    FormatName,
    Granularity,
    Ignore,
    Joint,
    MaxSeqLength,
    MethodName,
    NumCalibrationSamples,
    Pattern,
    ProtectFirst,
    ProtectLast,
    Published,
    Rank,
    RecipeFile,
    Remeasure,
    Resume,
    Seed,
    Sparsity,
    Stream,
    Strict,
)
from secateur.cli.compress_recipe import DropOptions, StageOptions, recipe_of
from secateur.cli.compress_stream import (
    StreamedRun,
    estimate_table,
    require_no_streaming,
    require_streamable,
)
from secateur.cli.options import (
    Device,
    Dtype,
    ModelArgument,
    Output,
    Overwrite,
    Revision,
    TrustRemoteCode,
)
from secateur.compress import CheckpointFormat, compress_with_report
from secateur.prepare import DEFAULT_SAMPLES, CalibrationChoice
from secateur.report.table import report_table
from secateur.settings import read_settings
from secateur.streaming.activations import Home


def compress_command(
    model: ModelArgument,
    output: Output,
    recipe: RecipeFile = None,
    method: MethodName = None,
    pattern: Pattern = None,
    sparsity: Sparsity = None,
    budget: Budget = None,
    rank: Rank = None,
    cut: Cut = None,
    joint: Joint = False,
    strict: Strict = False,
    published: Published = False,
    ignore: Ignore = None,
    drop_blocks: DropBlocks = None,
    criterion: CriterionName = None,
    granularity: Granularity = None,
    protect_first: ProtectFirst = 0,
    protect_last: ProtectLast = 0,
    remeasure: Remeasure = False,
    calibration: Calibration = None,
    num_calibration_samples: NumCalibrationSamples = DEFAULT_SAMPLES,
    max_seq_length: MaxSeqLength = None,
    seed: Seed = 0,
    calibrate_all_experts: CalibrateAllExperts = False,
    text: EvaluationText = None,
    checkpoint_format: FormatName = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    stream: Stream = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    activations: Activations = "auto",
) -> None:
    """Compress MODEL and write a Hugging Face folder with a report."""
    chosen = recipe_of(
        recipe,
        DropOptions(
            count=drop_blocks,
            criterion=criterion,
            granularity=granularity,
            protect_first=protect_first,
            protect_last=protect_last,
            remeasure=remeasure,
        ),
        StageOptions(
            method=method,
            pattern=pattern,
            sparsity=sparsity,
            budget=budget,
            rank=rank,
            cuts=cut or [],
            joint=joint,
            strict=strict,
            published=published,
            calibrate_all_experts=calibrate_all_experts,
            ignore=ignore or [],
        ),
    )
    console = Console(emoji=False)
    tokens = CalibrationChoice(calibration, num_calibration_samples, max_seq_length, seed)
    if stream or dry_run:
        require_streamable(text, checkpoint_format, trust_remote_code, resume and dry_run)
        streamed = StreamedRun(
            model,
            chosen,
            tokens,
            output,
            device,
            dtype,
            revision,
            overwrite,
            cast(Home, activations),
        )
        if dry_run:
            console.print(estimate_table(streamed.estimate()))
            return
        report = streamed.run(resume)
    else:
        require_no_streaming(activations)
        _, report = compress_with_report(
            model,
            chosen,
            calibration=calibration,
            output=output,
            num_calibration_samples=num_calibration_samples,
            max_seq_length=max_seq_length,
            seed=seed,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            checkpoint_format=cast(CheckpointFormat, checkpoint_format),
            evaluation_text=text,
            resume=resume,
        )
    if read_settings().rank != 0:
        return
    console.print(report_table(report))
    console.print(f"wrote {output}", highlight=False, soft_wrap=True, markup=False)
