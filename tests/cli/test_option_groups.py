"""Options that are declared in a dataclass, as Typer and the command see them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from secateur.cli.option_groups import with_option_groups
from secateur.cli.written import show_report
from secateur.report.record import Report


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option(help="How wide.")]
    name: Annotated[str, typer.Option("--called", help="A name.")] = "it"
    flat: Annotated[bool, typer.Option("--flat")] = False


@dataclass(frozen=True, kw_only=True)
class Place:
    shelf: int | None = None


@with_option_groups
def store(thing: str, *, count: int = 1, size: Size, place: Place, loud: bool = False) -> None:
    """Store things."""
    typer.echo(f"{count} {thing} {size} {place} {loud}")


app = typer.Typer()
app.command()(store)


def test_a_field_is_an_option_and_the_command_gets_the_dataclass() -> None:
    given = ["box", "--width", "3", "--called", "big", "--flat", "--count", "2", "--loud"]
    done = CliRunner().invoke(app, given)
    assert done.output.strip() == f"2 box {Size(width=3, name='big', flat=True)} {Place()} True"
    done = CliRunner().invoke(app, ["box", "--width", "3", "--shelf", "7"])
    assert done.output.strip() == f"1 box {Size(width=3)} {Place(shelf=7)} False"


def test_help_shows_fields_where_the_group_stands() -> None:
    page = CliRunner().invoke(app, ["--help"]).output
    assert "Store things." in page
    places = [page.index(text) for text in ("--count", "--width", "--called", "--shelf", "--loud")]
    assert places == sorted(places)
    assert "How wide." in page


def test_a_field_without_default_is_required() -> None:
    done = CliRunner().invoke(app, ["box"])
    assert done.exit_code == 2
    assert "--width" in done.output


def test_the_first_of_several_processes_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    show_report(Report.__new__(Report), Path("out"))
    assert capsys.readouterr().out == ""
