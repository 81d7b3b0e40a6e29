"""The regional optimizer's gain by block, from what is read in the picture."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from builders import prune, report

from secateur.errors import SecateurError
from secateur.report.page import render_report
from secateur.report.record import BlockRecord
from secateur.report.tuning_plots import tuning_svg

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(item.itertext()) for item in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def tuned(count: int = 3) -> tuple[BlockRecord, ...]:
    return tuple(
        BlockRecord(
            block=number,
            output_error=0.0625 / (number + 1),
            error_before_tuning=0.25 / (number + 1),
            seconds=1.0,
        )
        for number in range(count)
    )


def test_both_errors_of_every_block_are_written() -> None:
    svg = tuning_svg(tuned(), "pruning by RGS")
    shown = texts(svg)
    assert {"25.0", "6.2", "12.5", "3.1", "8.3", "2.1"} <= set(shown)
    assert {"after pruning by RGS", "after the regional optimizer"} <= set(shown)
    assert "0: 25.0 to 6.2, 1: 12.5 to 3.1, 2: 8.3 to 2.1." in svg
    assert svg == tuning_svg(tuned(), "pruning by RGS")


def test_blocks_that_were_not_tuned_have_no_place() -> None:
    first, second, third = tuned()
    svg = tuning_svg((first, replace(second, error_before_tuning=None), third), "pruning by RGS")
    assert "0: 25.0 to 6.2, 2: 8.3 to 2.1." in svg
    assert {"0", "2"} <= set(texts(svg))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_breaks_no_path(broken: float) -> None:
    first, second, _ = tuned()
    svg = tuning_svg((replace(first, error_before_tuning=broken), second), "pruning by RGS")
    assert not re.search(r'\b(d|x|y|x1|y1|x2|y2)="[^"]*(nan|inf)', svg, re.IGNORECASE)
    assert "1: 12.5 to 3.1" in svg


def test_many_blocks_have_bars_without_numbers() -> None:
    svg = tuning_svg(tuned(80), "pruning by RGS")
    assert "25.0" not in texts(svg)
    assert {"0", "4", "76"} <= set(texts(svg))


def test_nothing_tuned_is_refused() -> None:
    with pytest.raises(SecateurError, match="expected a block that was tuned, got none"):
        tuning_svg(prune().blocks, "pruning by RGS")


@pytest.mark.parametrize(
    ("method", "name"), [("wanda++", "RGS"), ("best-2:4", "ADMM"), ("ria", "ria")]
)
def test_the_page_shows_it_where_blocks_were_tuned(method: str, name: str) -> None:
    page = render_report(report(prune(method, num_blocks=3, blocks=tuned())))
    assert f"after pruning by {name}" in page
    assert "0: 25.0 to 6.2" in page
    assert "regional optimizer" not in render_report(report(prune(method)))
