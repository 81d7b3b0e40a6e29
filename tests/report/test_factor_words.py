"""Factor stages in words, on the terminal and on the page; zeros where something made them."""

import json
import re
from dataclasses import replace
from io import StringIO

import pytest
from builders import drop, factor, prune, report
from rich.console import Console
from training_builders import recover

from secateur.plain import to_plain
from secateur.report import page, table
from secateur.report.factor_words import budget_words, factored_words, method_words
from secateur.report.record import AnyStage, FactorRecord, Report, SizeRecord, report_from_text

SMALLER = SizeRecord(num_parameters=6_295_104, num_bytes=12_590_208, num_zeros=0, num_blocks=8)


def on_terminal(made: Report) -> str:
    out = StringIO()
    Console(file=out, width=80, emoji=False).print(table.report_table(made))
    return " ".join(out.getvalue().split())


def on_page(made: Report) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.render_report(made)).split())


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (factor(), "46 of 56 matrices factored by {}, 50.0% of their values kept"),
        (factor(56, 0), "56 matrices factored by {}, 50.0% of their values kept"),
        (factor(1, 0), "1 matrix factored by {}, 50.0% of its values kept"),
        (factor(1, 1), "1 of 2 matrices factored by {}, 50.0% of its values kept"),
        (factor(0, 2), "none of 2 matrices factored by {}"),
    ],
)
def test_matrices_that_stay_dense_are_not_called_factored(stage: FactorRecord, words: str) -> None:
    assert factored_words(stage) == words.format("svd-whitened (importance loss)")


def test_a_budget_is_told_by_what_it_counts() -> None:
    dense = "; 58.9% with those left dense"
    assert budget_words(factor()) == factored_words(factor()) + dense
    asked = factor(budget=0.4)
    assert budget_words(asked) == f"{factored_words(asked)}{dense} (asked for: 60.0%)"
    assert budget_words(factor(7, 0, budget=0.4)).endswith("values kept (asked for: 60.0%)")


CUT = {"method": "laser", "importance": None, "stored_dense": True}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (factor(1, 0, **CUT), "1 matrix cut in rank by laser, all its values still stored"),
        (
            factor(2, 1, **CUT),
            "2 of 3 matrices cut in rank by laser, all their values still stored",
        ),
        (factor(0, 1, **CUT), "none of 1 matrix cut in rank by laser"),
    ],
)
def test_ranks_that_are_cut_save_nothing(stage: FactorRecord, words: str) -> None:
    assert factored_words(stage) == budget_words(stage) == words
    asked = replace(stage, budget=0.4)
    assert budget_words(asked) == f"{words} (asked for: factors of 60.0%)"
    made = report(stage)
    for text in (on_terminal(made), on_page(made)):
        assert words.removeprefix("none") in text
    assert "Rank and relative output error" in on_page(made)
    assert "parameters left" not in page.report_headline(made)
    assert report_from_text(made.to_json()) == made


def test_the_importance_is_named_where_something_was_weighed() -> None:
    assert method_words(factor(importance="directions")) == "svd-whitened (importance directions)"
    assert method_words(factor(method="svd", importance=None)) == "svd"
    made = report(factor(importance="output"))
    for text in (on_terminal(made), on_page(made)):
        assert "svd-whitened (importance output)" in text
    assert report_from_text(made.to_json()) == made


def test_reports_from_before_name_no_importance() -> None:
    old = to_plain(report(factor()))
    del old["stages"][0]["importance"]
    (stage,) = report_from_text(json.dumps(old)).stages
    assert stage == factor(importance=None)


def test_a_plan_and_a_budget_count_the_same() -> None:
    """A plan names the matrices to factor, a budget all: side by side the figures are the same."""
    for made in (report(factor(46, 0), size=SMALLER), report(factor(46, 10), size=SMALLER)):
        terminal, shown = on_terminal(made), on_page(made)
        assert "50.0% of their values kept" in terminal
        assert "8.39M → 6.30M (75.0%)" in terminal
        assert "50.0% of their values kept; 75.0% of the model’s parameters left, in" in shown
    assert "parameters left" not in page.report_headline(report(prune()))


@pytest.mark.parametrize("stages", [(factor(),), (drop(),), (factor(), drop())])
def test_zeros_are_left_out_where_nothing_pruned(stages: tuple[AnyStage, ...]) -> None:
    made = report(*stages, size=SMALLER)
    assert "zeros" not in on_terminal(made)
    assert "zero" not in on_page(made).lower()


@pytest.mark.parametrize("stage", [prune(), recover()])
def test_zeros_are_told_where_something_pruned_now_or_before(stage: AnyStage) -> None:
    assert "8.39M → 8.39M, 37.5% zeros" in on_terminal(report(stage))
    assert "of these, zero 3,145,728" in on_page(report(stage))
    without = replace(report(prune()), size=SMALLER)
    assert "8.39M → 6.30M (75.0%), 0.0% zeros" in on_terminal(without)
