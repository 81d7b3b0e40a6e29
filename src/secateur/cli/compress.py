"""`secateur compress`: run a recipe, write the checkpoint, say what it cost and bought."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from secateur.cli.compress_recipe import (
    FACTORERS,
    PRUNERS,
    DropOptions,
    StageOptions,
    recipe_of,
)
from secateur.cli.compress_stream import (
    StreamedRun,
    estimate_table,
    require_no_streaming,
    require_streamable,
)
from secateur.cli.options import Device, Dtype, ModelArgument, Revision, TrustRemoteCode
from secateur.compress import CheckpointFormat, compress_with_report
from secateur.prepare import DEFAULT_SAMPLES, CalibrationChoice
from secateur.recipe import Criterion
from secateur.report.table import report_table
from secateur.settings import read_settings
from secateur.streaming.activations import Home

_CRITERIA = ", ".join(get_args(Criterion))


def compress_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file, YAML or JSON.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{PRUNERS} (zeros) or {FACTORERS} (factors).", show_default=False),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="keep:group such as 2:4, or unstructured.", show_default=False),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of zeros, for unstructured.", show_default=False),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Factors: fraction of the parameters to remove.", show_default=False),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Factors: the same rank everywhere.", show_default=False),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            help="laser: TYPE:BLOCK:FRACTION, such as mlp_in:7:0.1 (`secateur search` finds "
            "some). Repeatable.",
            show_default=False,
        ),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Factors: q/k/v and gate/up share one `down`.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Factors: refuse ranks that store more than the matrix."),
    ] = False,
    published: Annotated[
        bool,
        typer.Option("--published", help="Regional optimizer: the paper's own, gentler setting."),
    ] = False,
    drop_blocks: Annotated[
        int | None,
        typer.Option(help="Drop this many blocks of least influence.", show_default=False),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help=f"--drop-blocks: {_CRITERIA}. Default: block_influence.", show_default=False
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="--drop-blocks: block, or only its attention or mlp. Default: block.",
            show_default=False,
        ),
    ] = None,
    protect_first: Annotated[int, typer.Option(help="--drop-blocks: never the first so many.")] = 0,
    protect_last: Annotated[int, typer.Option(help="--drop-blocks: never the last so many.")] = 0,
    remeasure: Annotated[
        bool,
        typer.Option("--remeasure", help="--drop-blocks: measure anew after each removal."),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text file, folder, JSON lines, or dataset name[:config[:split]].",
            show_default=False,
        ),
    ] = None,
    num_calibration_samples: Annotated[int, typer.Option(help="Windows.")] = DEFAULT_SAMPLES,
    max_seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens in a window. Default: 2048, or the model's context."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the windows' places.")] = 0,
    calibrate_all_experts: Annotated[
        bool,
        typer.Option(
            "--calibrate-all-experts",
            help="Statistics of every expert are those of all tokens; the router still decides "
            "what the model gives.",
        ),
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Leave these matrices dense: name, class, or re:regex. Repeatable."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Measure perplexity on this text, before and after.", show_default=False),
    ] = None,
    checkpoint_format: Annotated[
        str,
        typer.Option(
            "--format", help="dense, compact (2:4 and factors as such), or auto: as made."
        ),
    ] = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output once the new one is complete.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Prune from disk to disk, a block at a time, with a journal: for models that do "
            "not fit in memory, and for long runs.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an interrupted run: after its last block (--stream), or in its "
            "training.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only check, and say what --stream will need: memory, disk, time."
        ),
    ] = False,
    activations: Annotated[
        str,
        typer.Option(
            help="--stream: keep hidden states on the device, in host memory, in a file, or where "
            "there is room (auto)."
        ),
    ] = "auto",
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
