"""`secateur demo`: the bundled example from beginning to end, in a few minutes."""

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli.waiting import shown_progress
from secateur.cli.written import write_whole
from secateur.demo import run_demo
from secateur.report.page import render_comparison
from secateur.report.table import comparison_table


def demo_command(
    output: Annotated[Path, typer.Option(help="Folder for models and report.")] = Path("demo"),
    example: Annotated[
        Path, typer.Option(help="Model folder with its texts, as in examples/books-8m.")
    ] = Path("examples/books-8m"),
) -> None:
    """Compress the bundled model in every way and compare: quality, size, speed, text."""
    started = perf_counter()
    with shown_progress() as progress:
        comparison = run_demo(example, output, progress)
    write_whole(output / "report.html", render_comparison(comparison))
    write_whole(output / "comparison.json", comparison.to_json())
    console = Console(emoji=False)
    console.print(comparison_table(comparison))
    console.print(
        f"{perf_counter() - started:.0f} s. The report with pictures and generated text: "
        f"{(output / 'report.html').resolve()}",
        highlight=False,
        soft_wrap=True,
    )
