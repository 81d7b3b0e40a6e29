"""`secateur report`: the report of a compressed model, as a page and on the terminal."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli.options import JsonOutput
from secateur.cli.written import say_wrote
from secateur.errors import SecateurError
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
        write_page(html, render_report(report))
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    console = Console(emoji=False)
    console.print(report_table(report))
    if html is not None:
        say_wrote(console, html)


def write_page(path: Path, page: str) -> None:
    """Write a page beside its final place, then rename it.

    Raises:
        SecateurError: the place cannot be written to.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SecateurError(f"{path} cannot be written: {error}") from error
