"""A run of the throughput benchmark as one HTML page that needs nothing but itself.

It has the style of the other pages, which stands in their template. All text from outside passes
the template's escaping.
"""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from secateur.report import numbers, plots, throughput_plots, throughput_words
from secateur.report.throughput_record import ThroughputRecord

_COLOURS = {"ink": plots.INK, "muted": plots.MUTED, "line": plots.LINE, "paper": plots.PAPER}


def render_throughput(record: ThroughputRecord) -> str:
    """The page; equal records give equal pages."""
    return _template().render(
        record=record,
        style=Markup(_house_style()),
        headline=throughput_words.headline(record),
        findings=throughput_words.findings(record),
        cautions=throughput_words.cautions(record),
        header=throughput_words.HEADER,
        rows=throughput_words.rows(record),
        decode_picture=_picture(throughput_plots.decode_svg(record)),
        prefill_picture=_picture(throughput_plots.prefill_svg(record)),
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
    environment.globals.update(numbers=numbers, words=throughput_words)
    return environment.from_string(_source("throughput.html.j2"))
