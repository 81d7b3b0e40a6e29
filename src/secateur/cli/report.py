"""`secateur report`: the report of a compressed model, as a page and on the terminal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli.options import JsonOutput
from secateur.cli.written import say_wrote, write_whole
from secateur.report.page import render_report
from secateur.report.record import load_report
from secateur.report.table import report_table


def report_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A compressed model's folder, or its secateur_report.json."
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(help="Write the page here.", show_default=False),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Show what a compression did; with --html, write the self-contained page."""
    report = load_report(folder)
    if html is not None:
        write_whole(html, render_report(report))
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    console = Console(emoji=False)
    console.print(report_table(report))
    if html is not None:
        say_wrote(console, html)
