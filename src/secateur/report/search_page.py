"""A search as one HTML page that needs nothing but itself.

It has the style of the other pages, which stands in their template. All text from outside (names,
prompts, answers) passes the template's escaping.
"""

from functools import cache

from jinja2 import Template

from secateur.report import search_plots, search_words, table
from secateur.report.search_record import SearchRecord
from secateur.report.template import house_style, page_template, picture

_RANKS_SHOWN = 40


def render_search(record: SearchRecord) -> str:
    """The page; equal records give equal pages."""
    best = {
        place: max(gain for _, gain in points)
        for place, points in search_plots.gains(record).items()
    }
    return _template().render(
        record=record,
        task=record.task,
        style=house_style(),
        title=f"LASER search: {record.model.source} on {record.task.name}",
        headline=search_words.headline(record),
        findings=search_words.findings(record),
        cautions=search_words.cautions(record),
        heat_map=picture(search_plots.heat_map_svg(record)),
        fractions_picture=picture(search_plots.fraction_svg(record)),
        states_picture=picture(search_plots.states_svg(record)),
        groups=list(record.state("dense").groups),
        last_of_place=_last_steps(record),
        ranking=[(r, best.get((r.matrix, r.block))) for r in record.ranking[:_RANKS_SHOWN]],
        dense_validation=record.state("dense").validation.value,
        sign=-1 if record.task.lower_is_better else 1,
        options=_shown_options(record),
    )


def _last_steps(record: SearchRecord) -> set[int]:
    """Numbers of the steps whose cut was not replaced later."""
    last = {(step.cut.matrix, step.cut.block): n for n, step in enumerate(record.steps)}
    return set(last.values())


def _shown_options(record: SearchRecord) -> dict[str, str]:
    shown = {}
    for name, value in record.options.items():
        if value in (None, [], ()) or (name == "analyse_items" and value == 0):
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        shown[name.replace("_", " ")] = text
    return shown


@cache
def _template() -> Template:
    return page_template("search.html.j2", show=table, words=search_words)
