"""A run of the throughput benchmark as one HTML page that needs nothing but itself.

It has the style of the other pages, which stands in their template. All text from outside passes
the template's escaping.
"""

from functools import cache

from jinja2 import Template

from secateur.report import numbers, throughput_plots, throughput_words
from secateur.report.template import house_style, page_template, picture
from secateur.report.throughput_record import ThroughputRecord


def render_throughput(record: ThroughputRecord) -> str:
    """The page; equal records give equal pages."""
    return _template().render(
        record=record,
        style=house_style(),
        headline=throughput_words.headline(record),
        findings=throughput_words.findings(record),
        cautions=throughput_words.cautions(record),
        noted=any(map(throughput_words.model_note, record.models)),
        has_memory=any(one.peak_memory_bytes is not None for one in record.measurements),
        header=throughput_words.HEADER,
        rows=throughput_words.rows(record),
        decode_picture=picture(throughput_plots.decode_svg(record)),
        prefill_picture=picture(throughput_plots.prefill_svg(record)),
    )


@cache
def _template() -> Template:
    return page_template("throughput.html.j2", numbers=numbers, words=throughput_words)
