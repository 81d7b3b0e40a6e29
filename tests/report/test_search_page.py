import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from page_reader import EVIL, Reader
from search_builders import (
    UNSEARCHED,
    full_search,
    loss_search,
    nothing_found,
    search,
    state,
    task,
    trials,
)

from secateur.report import search_plots
from secateur.report.search_page import render_search
from secateur.report.search_record import AnalysisRecord, AnswerRecord, SearchRecord

RECORDS = {
    "found": search(),
    "nothing": nothing_found(),
    "loss": loss_search(),
    "full": full_search(),
    "deep": search(num_blocks=40),
}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_pages_are_whole_equal_and_need_nothing_else(name: str) -> None:
    record = RECORDS[name]
    page = render_search(record)
    assert page == render_search(record)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", page)
    assert "http" not in reader.text
    # The style of the other pages came along.
    assert ".headline" in page
    assert f"LASER search: tiny on {record.task.name}" in reader.text
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_says_what_was_chosen_and_what_replaced() -> None:
    text = Reader(render_search(search())).text
    assert "52 combinations" not in text
    assert "7 combinations were tried" in text
    lone = Reader(render_search(search(num_composition_trials=1))).text
    assert "1 combination was tried" in lone
    assert text.count("(replaced)") == 1
    assert "12 of 256" in text
    assert "All 45 single cuts" in text
    assert "Cutting rank helps" in text


def test_says_that_nothing_was_chosen() -> None:
    text = Reader(render_search(nothing_found())).text
    assert "Nothing: no cut, alone or with others, beat the dense model" in text


def test_shows_groups_ranking_and_answers() -> None:
    text = Reader(render_search(full_search())).text
    assert "Test, original" in text
    assert "50.0% ± 2.0" in text
    assert "The filter: 2 of 2 matrices" in text
    assert "not searched" in text
    assert "Kept components ✓" in text
    assert "Discarded components ✓" not in text
    assert "(nothing)" in text


def test_text_from_outside_stays_text() -> None:
    answer = AnswerRecord(prompt=EVIL, expected=EVIL, dense=EVIL, kept=EVIL, discarded=EVIL)
    evil = search(
        task=task(name=EVIL, metric=EVIL),
        model=replace(search().model, source=EVIL),
        notes=(EVIL,),
        machine={EVIL: EVIL},
        options={EVIL: [EVIL]},
        analysis=AnalysisRecord(cuts=search().states[1].cuts, answers=(answer,)),
    )
    page = render_search(evil)
    assert "<script" not in page
    assert EVIL in Reader(page).text


def pictures(record: SearchRecord) -> list[str]:
    return [
        search_plots.heat_map_svg(record),
        search_plots.fraction_svg(record),
        search_plots.states_svg(record),
    ]


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_pictures_are_svg_with_words(name: str) -> None:
    for picture in pictures(RECORDS[name]):
        root = ElementTree.fromstring(picture)
        assert root.tag.endswith("svg")
        assert root.attrib["aria-label"]


def test_the_heat_map_has_the_best_change_of_each_matrix() -> None:
    record = search()
    found = search_plots.gains(record)
    assert UNSEARCHED not in found
    assert len(found) == 15
    assert [fraction for fraction, _ in found["q", 3]] == [0.9, 0.2, 0.05]
    assert max(gain for _, gain in found["q", 3]) == pytest.approx(0.04 * 0.5 * 0.95)
    picture = search_plots.heat_map_svg(record)
    # 0.04 * 0.5 * 0.95 of block 3, best at the smallest fraction.
    assert "q of block 3 +1.9 points at 5%" in picture
    assert ">+1.9<" in picture
    assert picture.count(">at 5%<") == 4


def test_changes_of_a_loss_are_turned_round() -> None:
    record = loss_search()
    assert max(gain for _, gain in search_plots.gains(record)["q", 3]) > 0
    assert "lower is better" in search_plots.states_svg(record)


def test_equal_scores_everywhere_do_no_harm() -> None:
    same = tuple(replace(t, validation=search().states[0].validation) for t in trials())
    flat = (state("dense", (), 0.6), *search().states[1:])
    for picture in pictures(search(trials=same, states=flat)):
        ElementTree.fromstring(picture)
