"""An analysis of attention as one HTML page that needs nothing but itself.

It has the style of the other pages, which stands in their template. All text from outside passes
the template's escaping.
"""

from functools import cache

from jinja2 import Template

from secateur.report import attention_plots, attention_words, table
from secateur.report.attention_record import AttentionRecord
from secateur.report.template import house_style, page_template, picture


def render_attention(record: AttentionRecord) -> str:
    """The page; equal records give equal pages."""
    return _template().render(
        record=record,
        style=house_style(),
        title=f"Attention of {record.model.source}",
        headline=attention_words.headline(record),
        findings=attention_words.findings(record),
        cautions=attention_words.cautions(record),
        blocks_picture=picture(attention_plots.blocks_svg(record)),
        heads_picture=picture(attention_plots.heads_svg(record)),
        share=f"{100 * record.share:g}%",
    )


@cache
def _template() -> Template:
    return page_template("attention.html.j2", show=table, words=attention_words)
