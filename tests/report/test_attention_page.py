import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from attention_builders import analysis, block, deep, nothing_lazy, scattered
from page_reader import EVIL, Reader

from secateur.report import attention_plots, plots
from secateur.report.attention_page import render_attention
from secateur.report.attention_record import AttentionRecord

RECORDS = {
    "lazy": analysis(),
    "nothing": nothing_lazy(),
    "scattered": scattered(),
    "deep": deep(),
    "single": analysis((block(0, 1.0),), (0,)),
}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_pages_are_whole_equal_and_need_nothing_else(name: str) -> None:
    record = RECORDS[name]
    page = render_attention(record)
    assert page == render_attention(record)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", page)
    assert "http" not in reader.text
    # The style of the other pages came along, and pictures follow its colours.
    assert ".headline" in page
    assert page.count("<svg") == 2
    assert plots.INK not in page.partition("</style>")[2]
    assert "<title>Attention of tiny</title>" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_says_what_was_found_and_how() -> None:
    page = render_attention(analysis())
    text = Reader(page).text
    assert "Blocks 3 and 4 are lazy" in text
    assert "does not say that the block can go" in text
    assert "8 windows of 128 tokens, drawn at random (seed 3) from books.txt" in text
    assert "arXiv 2404.08634" in text
    assert page.count('<tr class="lazy">') == 2
    # Highest and lowest rank, widest and narrowest column mass.
    assert "1 3 88.0 1.25 110 1.56" in text
    assert "No block is lazy" in Reader(render_attention(nothing_lazy())).text


def test_text_from_outside_stays_text() -> None:
    record = analysis(machine={EVIL: EVIL}, versions={EVIL: EVIL})
    record = replace(
        record,
        model=replace(record.model, source=EVIL, architecture=EVIL),
        text=replace(record.text, source=EVIL),
    )
    page = render_attention(record)
    assert "<script" not in page
    assert Reader(page).text.count(EVIL) >= 6


def pictures(record: AttentionRecord) -> list[str]:
    return [attention_plots.blocks_svg(record), attention_plots.heads_svg(record)]


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_pictures_are_svg_with_words(name: str) -> None:
    for picture in pictures(RECORDS[name]):
        root = ElementTree.fromstring(picture)
        assert root.tag.endswith("svg")
        assert root.attrib["aria-label"]


def shown(picture: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(picture).iter() if element.text
    ]


def test_the_blocks_picture_names_lazy_blocks_and_its_lines() -> None:
    picture = attention_plots.blocks_svg(analysis())
    words = " ".join(shown(picture))
    for part in ("lazy: 3 and 4", "a head", "strongest head of the block", "lazy below", "1.5"):
        assert part in words
    assert "block 2 rank 22.0, column mass 27.5" in picture
    assert "Lazy blocks: 3 and 4." in picture
    nothing = attention_plots.blocks_svg(nothing_lazy())
    assert "lazy: " not in " ".join(shown(nothing))
    assert "Lazy blocks: none." in nothing


def test_a_dot_for_every_head_in_both_panels() -> None:
    # Dots are drawn once as a shape and used by reference; the line's markers are others.
    picture = attention_plots.blocks_svg(scattered())
    dots = re.findall(r"<use [^>]*#6db6de[^>]*>", picture)
    assert len(dots) == 2 * (2 + 1 + 3 + 2) + 1  # And one in the legend.


def test_shades_are_where_lazy_blocks_are() -> None:
    shade = r'<path [^>]*style="fill: #c98a1e; opacity: 0\.16'
    counts = [
        len(re.findall(shade, attention_plots.blocks_svg(record)))
        for record in (analysis(), nothing_lazy(), scattered(), deep())
    ]
    # In both panels.
    assert counts == [4, 0, 4, 2]


def test_the_heat_map_has_every_head() -> None:
    cells = attention_plots.rank_cells(scattered())
    nan = np.nan
    wanted = [[4.0, 1.0, 1.0, 50.0], [2.0, nan, 1.0, 1.0], [nan, nan, 1.0, nan]]
    assert np.array_equal(cells, wanted, equal_nan=True)
    words = shown(attention_plots.heads_svg(scattered()))
    assert [word for word in words if "." in word] == [
        *("4.00", "1.00", "1.00", "50.0", "2.00", "1.00", "1.00", "1.00")
    ]
    # Too many to be written: a scale instead.
    many = shown(attention_plots.heads_svg(deep()))
    assert not [word for word in many if "." in word]
    assert "100" in many


def test_neighbouring_lazy_blocks_share_a_frame() -> None:
    frame = rf'<path [^>]*style="fill: none; stroke: {plots.INK}; stroke-width: 2'
    for record, number in ((analysis(), 1), (nothing_lazy(), 0), (scattered(), 1)):
        assert len(re.findall(frame, attention_plots.heads_svg(record))) == number
    apart = analysis((block(0, 1.0), block(1, 9.0), block(2, 1.0)), (0, 2))
    assert len(re.findall(frame, attention_plots.heads_svg(apart))) == 2
