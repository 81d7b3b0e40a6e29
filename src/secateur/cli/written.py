"""What a command says of what it wrote."""

from pathlib import Path

from rich.console import Console

from secateur.report.record import Report
from secateur.report.table import report_table
from secateur.settings import read_settings


def show_report(report: Report, output: Path) -> None:
    """What was done to a model, and where it is now; of several processes the first one tells."""
    if read_settings().rank == 0:
        console = Console(emoji=False)
        console.print(report_table(report))
        say_wrote(console, output)


def say_wrote(console: Console, path: Path) -> None:
    """One line, however long, with the path as it is."""
    console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)
