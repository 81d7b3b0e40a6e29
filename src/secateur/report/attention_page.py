"""An analysis of attention as one HTML page that needs nothing but itself.

It has the style of the other pages, which stands in their template. All text from outside passes
the template's escaping.
"""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from secateur.report import attention_plots, attention_words, plots, table
from secateur.report.attention_record import AttentionRecord

_COLOURS = {"ink": plots.INK, "muted": plots.MUTED, "line": plots.LINE, "paper": plots.PAPER}


def render_attention(record: AttentionRecord) -> str:
    """The page; equal records give equal pages."""
    return _template().render(
        record=record,
        style=Markup(_house_style()),
        title=f"Attention of {record.model.source}",
        headline=attention_words.headline(record),
        findings=attention_words.findings(record),
        cautions=attention_words.cautions(record),
        blocks_picture=_picture(attention_plots.blocks_svg(record)),
        heads_picture=_picture(attention_plots.heads_svg(record)),
        share=f"{100 * record.share:g}%",
    )


def _picture(svg: str) -> Markup:
    """SVG that follows the page's colours, light or dark. Its text was escaped when drawn."""
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)


def _source(name: str) -> str:
    return files("secateur.report").joinpath(name).read_text(encoding="utf-8")


def _house_style() -> str:
    """The style sheet of the other pages."""
    _, _, rest = _source("page.html.j2").partition("<style>")
    return rest.partition("</style>")[0]


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(show=table, words=attention_words)
    return environment.from_string(_source("attention.html.j2"))
