"""What all pages share: how templates are read, one style sheet, pictures in its colours."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from secateur.report import plots

_COLOURS = {"ink": plots.INK, "muted": plots.MUTED, "line": plots.LINE, "paper": plots.PAPER}
_STYLED = "page.html.j2"


def page_template(name: str, **names: Any) -> Template:
    """A template of this folder that escapes all text it is given, and knows `names`."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(names)
    return environment.from_string(_source(name))


def picture(svg: str) -> Markup:
    """SVG that follows the page's colours, light or dark. Its text was escaped when drawn."""
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)


@cache
def house_style() -> Markup:
    """The style sheet of all pages, which stands in the report's template."""
    _, _, rest = _source(_STYLED).partition("<style>")
    return Markup(rest.partition("</style>")[0])


def _source(name: str) -> str:
    return files("secateur.report").joinpath(name).read_text(encoding="utf-8")
