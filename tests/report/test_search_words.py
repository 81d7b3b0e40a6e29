import math
from dataclasses import replace

import pytest
from search_builders import change, cut, loss_search, nothing_found, score, search, state, task

from secateur.report import search_words as words
from secateur.report.search_record import ChangeRecord, SearchRecord

LOSS = task(metric="loss", lower_is_better=True)


def with_change(composed: ChangeRecord) -> SearchRecord:
    *others, _ = search().states
    return search(states=(*others, state("composed", (cut(),), 0.64, change=composed)))


@pytest.mark.parametrize(
    ("record", "verdict", "headline"),
    [
        (with_change(change(0.021, 0.013)), "better", "Cutting rank helps on held-out items of"),
        (with_change(change(0.0, 1.0)), "unclear", "are at or above dense, but not beyond chance"),
        (with_change(change(-0.01, 0.3)), "unclear", "are below dense, but not beyond chance"),
        (with_change(change(0.01, math.nan)), "unclear", "not beyond chance"),
        (with_change(change(-0.03, 0.001)), "worse", "makes pairs worse on held-out items"),
        (nothing_found(), "none", "No cut made tiny better at pairs: none of 45 trials beat"),
    ],
)
def test_the_headline_says_what_held(record: SearchRecord, verdict: str, headline: str) -> None:
    assert words.verdict(record) == verdict
    assert headline in words.headline(record)


def test_the_headline_has_the_held_out_numbers() -> None:
    assert words.headline(search()) == (
        "Cutting rank helps on held-out items of pairs: accuracy 58.8% dense, 62.8% with 2 cuts "
        "(better by 2.1 ± 0.9 points, p = 0.013)."
    )
    assert (
        "loss 2.988 dense, 2.938 with 1 cut (better by 0.040 ± 0.009, p < 0.001)"
        in words.headline(loss_search())
    )


def test_findings_count_what_was_better() -> None:
    first, second, third = words.findings(search())
    # Of four types the first one helps, in four blocks at three fractions.
    assert first == "12 of 45 trials beat the dense model on the 402 validation items."
    assert second == (
        "The best single cut is MLP in of block 2 at 5% of its rank: better by 1.5 points on "
        "validation, better by 0.4 ± 0.9 points on the test split, p = 0.6."
    )
    assert third == (
        "Against the best single cut, 2 cuts together are better by 2.5 points on validation, and "
        "better by 2.5 points on the test split."
    )
    assert len(words.findings(nothing_found())) == 2


def test_cautions() -> None:
    first, second, note = words.cautions(search())
    assert "the best of 52 trials, and flattered by that" in first
    assert "save neither memory nor time" in second
    assert note.startswith("The fraction 0.01 leaves no rank")
    assert words.cautions(nothing_found(notes=())) == []
    worse = with_change(change(-0.01, 0.3))
    assert "On the test split, the composition scored below the dense model." in words.cautions(
        worse
    )


def test_numbers_as_text() -> None:
    fraction = task()
    assert words.format_score(fraction, 0.7149) == "71.5%"
    assert words.format_score(LOSS, 3.41) == "3.410"
    assert words.format_score(fraction, math.nan) == "NaN"
    assert words.format_estimate(fraction, score(0.5, math.nan)) == "50.0% ± NaN"
    assert words.format_improvement(fraction, -0.0123) == "-1.2 points"
    assert words.format_improvement(LOSS, 0.5) == "+0.500"
    assert words.format_change(fraction, None) == "–"
    assert words.format_p(change(p_value=math.nan)) == "–"
    assert words.format_p(change(p_value=1e-9)) == "< 0.001"
    assert words.format_p(None) == "–"
    assert words.by_words(fraction, -0.012, 0.01) == "worse by 1.2 ± 1.0 points"
    assert words.by_words(LOSS, 0.0) == "no better and no worse"
    assert words.by_words(LOSS, math.nan) == "not comparable"
    assert words.is_fraction(replace(LOSS, kind="lm-eval", metric="acc"))
    assert not words.is_fraction(replace(LOSS, kind="callable", metric="score"))
