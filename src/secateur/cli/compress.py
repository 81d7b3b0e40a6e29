"""`secateur compress`: run a recipe, write the checkpoint, say what it cost and bought."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from secateur.cli.options import Device, Dtype, ModelArgument, Revision, TrustRemoteCode
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.prepare import DEFAULT_SAMPLES
from secateur.recipe import UNSTRUCTURED, Recipe, load_recipe, recipe_from_dict
from secateur.report.table import report_table


def compress_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file, YAML or JSON.", show_default=False)
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="magnitude, wanda or sparsegpt.", show_default=False)
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="keep:group such as 2:4, or unstructured.", show_default=False),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of zeros, for unstructured.", show_default=False),
    ] = None,
    drop_blocks: Annotated[
        int | None,
        typer.Option(help="Drop this many blocks of least influence.", show_default=False),
    ] = None,
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
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Leave these matrices dense: name, class, or re:regex. Repeatable."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Measure perplexity on this text, before and after.", show_default=False),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output once the new one is complete.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compress MODEL and write a Hugging Face folder with a report."""
    _, report = compress_with_report(
        model,
        _recipe(recipe, method, pattern, sparsity, drop_blocks, ignore or []),
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
        evaluation_text=text,
    )
    console = Console()
    console.print(report_table(report))
    console.print(f"wrote {output}", highlight=False, soft_wrap=True, markup=False)


def _recipe(
    path: Path | None,
    method: str | None,
    pattern: str | None,
    sparsity: float | None,
    drop_blocks: int | None,
    ignore: list[str],
) -> Recipe:
    by_options = any(value is not None for value in (method, pattern, sparsity, drop_blocks))
    if path is not None:
        if by_options or ignore:
            raise SecateurError(
                "give either --recipe or the options --method, --pattern, --sparsity, "
                "--drop-blocks and --ignore, not both"
            )
        return load_recipe(path)
    stages: list[dict[str, Any]] = []
    if drop_blocks is not None:
        stages.append({"stage": "drop_blocks", "count": drop_blocks})
    if method is not None:
        stages.append(
            {
                "stage": "prune",
                "method": method,
                "pattern": pattern or UNSTRUCTURED,
                "sparsity": sparsity,
                "ignore": ignore,
            }
        )
    elif pattern is not None or sparsity is not None or ignore:
        raise SecateurError("--pattern, --sparsity and --ignore need --method")
    if not stages:
        raise SecateurError("say what to do: --recipe FILE, --method NAME or --drop-blocks N")
    return recipe_from_dict({"stages": stages}, "the command line")
