"""`secateur convert`: a 2:4 checkpoint of another format as a compact one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli.options import OUTPUT_HELP, Overwrite, TrustRemoteCode
from secateur.convert import convert
from secateur.report.table import report_table


def convert_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder in compressed-tensors' format sparse-24-bitmask, or a dense one whose "
            "zeros are stored.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help=OUTPUT_HELP)],
    overwrite: Overwrite = False,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Turn a 2:4 checkpoint, dense or of compressed-tensors, into a compact one."""
    report = convert(
        source,
        output,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
        trust_remote_code=trust_remote_code,
    )
    Console(emoji=False).print(report_table(report))
