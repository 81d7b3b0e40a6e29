"""Figures on the pages: what stands between markers is what the records say."""

import re
from pathlib import Path

import pytest
from bench.readme import SECTIONS, filled, pages

FIGURES = {"speed": lambda: "| 2 |", "size": lambda: "| 3 |"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_page_shows_what_the_records_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run `python -m bench.readme`"


def test_the_readme_and_every_guide_are_pages(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/b.md", "docs/a.md", "docs/a.txt", "other.md"):
        (tmp_path / name).touch()
    found = [page.relative_to(tmp_path).as_posix() for page in pages(tmp_path)]
    assert found == ["README.md", "docs/a.md", "docs/b.md"]


def test_figures_take_the_place_of_what_stood_there() -> None:
    text = (
        "a\n<!-- begin size -->\nold\nlines\n<!-- end size -->\nb\n"
        "<!-- begin speed -->\n<!-- end speed -->\nc\n<!-- begin size --><!-- end size -->"
    )
    assert filled(text, FIGURES) == (
        "a\n<!-- begin size -->\n| 3 |\n<!-- end size -->\nb\n"
        "<!-- begin speed -->\n| 2 |\n<!-- end speed -->\nc\n"
        "<!-- begin size -->\n| 3 |\n<!-- end size -->"
    )
    assert filled("no figures\n", FIGURES) == "no figures\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- begin seize -->\n<!-- end seize -->",
            "a name of bench.readme.SECTIONS, got `<!-- b",
        ),
        ("<!-- begin size -->\nlost", "expected a partner of `<!-- begin size -->`, got none"),
        ("<!-- end size -->", "expected a partner of `<!-- end size -->`, got none"),
        ("<!-- begin size --><!-- end speed -->", "`<!-- begin size -->`, `<!-- end speed -->`"),
        ("<!-- begin size --><!-- begin size -->", "`<!-- begin size -->`, `<!-- begin size -->`"),
        ("<!-- end size --><!-- begin size -->", "`<!-- end size -->`, `<!-- begin size -->`"),
    ],
)
def test_markers_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        filled(text, FIGURES)


def test_the_readme_shows_kernels_and_quality() -> None:
    text = pages()[0].read_text(encoding="utf-8")
    shown = set(re.findall(r"<!-- begin (\S+) -->", text))
    assert {"sparse24-chain", "quality-2of4"} <= shown <= set(SECTIONS)
