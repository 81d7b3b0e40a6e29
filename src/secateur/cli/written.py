"""The files that commands write, and what they say of them."""

from contextlib import suppress
from pathlib import Path

from rich.console import Console

from secateur.errors import SecateurError
from secateur.report.record import Report
from secateur.report.table import report_table
from secateur.settings import read_settings


def write_whole(path: Path, text: str) -> None:
    """Write a text file, with folders for it, beside its final place; then rename it.

    What is no UTF-8 in names of files that the text tells of is escaped.

    Raises:
        SecateurError: the place cannot be written to.
    """
    if not path.name:
        raise SecateurError(f"{path} cannot be written: it is a folder")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SecateurError(f"{path} cannot be written: {error}") from error


def show_report(report: Report, output: Path) -> None:
    """What was done to a model, and where it is now; of several processes the first one tells."""
    if read_settings().rank == 0:
        console = Console(emoji=False)
        console.print(report_table(report))
        say_wrote(console, output)


def say_wrote(console: Console, path: Path) -> None:
    """One line, however long, with the path as it is."""
    console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)
