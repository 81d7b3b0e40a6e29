import pytest
from builders import prune, report

from secateur.report.page import render_report
from secateur.report.record import BlockRecord, PruneRecord, report_from_text
from secateur.report.routing_words import RoutingRow, routing_notes, routing_rows
from secateur.report.table import report_notes


def with_experts(*tokens: tuple[int, ...], **changes: object) -> PruneRecord:
    blocks = tuple(
        BlockRecord(block=index, output_error=0.1, seconds=1.0, expert_tokens=counts)
        for index, counts in enumerate(tokens)
    )
    return prune(blocks=blocks, **{"min_expert_tokens": 32, **changes})


def test_rows_are_of_blocks_with_experts() -> None:
    stage = with_experts((), (5, 900, 31, 32), (40, 50, 60))
    assert routing_rows(stage) == [
        RoutingRow(1, 4, least=5, median=31.5, most=900, num_few=2),
        RoutingRow(2, 3, least=40, median=50.0, most=60, num_few=0),
    ]
    assert [row.few for row in routing_rows(stage)] == ["2", "0"]


def test_records_from_before_do_not_say_what_is_few() -> None:
    (row,) = routing_rows(with_experts((1, 2), min_expert_tokens=None))
    assert (row.num_few, row.few) == (None, "–")
    assert routing_notes(with_experts((1, 2), min_expert_tokens=None)) == []


def test_a_note_says_where_tokens_were_few() -> None:
    note = (
        "3 of 7 experts were sent fewer than 32 calibration tokens by the router, in blocks 1 and "
        "2: give more calibration samples, or calibrate_all_experts"
    )
    stage = with_experts((), (5, 900, 31, 32), (4, 50, 60))
    assert routing_notes(stage) == [note]
    assert note in report_notes(report(stages=(stage,)))
    many = with_experts(*[(1,)] * 6, calibrate_all_experts=True)
    assert routing_notes(many) == [
        "6 of 6 experts were sent fewer than 32 calibration tokens by the router, in 6 blocks: "
        "0, 1, 2, 3, …: their statistics are those of all tokens, as calibrate_all_experts asks"
    ]
    assert routing_notes(with_experts((32, 33))) == routing_notes(prune()) == []


@pytest.mark.parametrize("everything", [False, True])
def test_the_page_has_a_row_for_each_block(everything: bool) -> None:
    stage = with_experts((), (5, 1900, 31, 32), calibrate_all_experts=everything)
    page = render_report(report(stages=(stage,)))
    assert "Calibration tokens by expert, 1 block<" in page
    assert "1,900" in page
    assert ("are those of all tokens, routed there or not" in page) is everything
    assert "Calibration tokens by expert" not in render_report(report(stages=(prune(),)))


def test_the_record_comes_back_from_json() -> None:
    before = report(stages=(with_experts((), (5, 9)),))
    assert report_from_text(before.to_json()) == before
