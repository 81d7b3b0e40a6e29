"""`secateur convert`: 2:4 checkpoints of other formats as compact ones, and these as dense ones."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from secateur.cli.options import OUTPUT_HELP, Overwrite, TrustRemoteCode
from secateur.convert import convert
from secateur.make_dense import make_dense
from secateur.report.table import report_table


def convert_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder in compressed-tensors' format sparse-24-bitmask, or a dense one whose "
            "zeros are stored; with --format dense a compact one.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help=OUTPUT_HELP)],
    checkpoint_format: Annotated[
        Literal["compact", "dense"],
        typer.Option("--format", help="compact, or dense: what any tool loads, zeros stored."),
    ] = "compact",
    overwrite: Overwrite = False,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Turn 2:4 checkpoints of other formats into compact ones, or these into dense ones."""
    report = (make_dense if checkpoint_format == "dense" else convert)(
        source,
        output,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
        trust_remote_code=trust_remote_code,
    )
    Console(emoji=False).print(report_table(report))
