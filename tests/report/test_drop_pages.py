"""Drop stages in words, tables and pictures."""

import math
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import INFLUENCE, drop, prune, report
from rich.console import Console

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.report import depth_plots, drop_words, page, plots, table
from secateur.report.record import DropRecord, DropRound, report_from_text

SCORES = (None, 3.4, 3.3, 3.35, None)
GREEDY: dict[str, Any] = {
    "criterion": "perplexity",
    "block_influence": (),
    "granularity": "attention",
    "rounds": (
        DropRound(scores=SCORES, chosen=(2,)),
        DropRound(scores=(None, 3.6, None, 3.5, None), chosen=(3,)),
    ),
    "losses": (3.2, 3.3, 3.5),
    "protected": (0, 4),
    "removed": ("model.layers.2.self_attn", "model.layers.3.self_attn"),
}


def greedy() -> DropRecord:
    return drop((2, 3), **GREEDY)


def plain(markup: str) -> str:
    return "".join(ElementTree.fromstring(markup).itertext())


def test_words() -> None:
    assert drop_words.dropped_words(drop((4,))) == "block 4 dropped"
    assert drop_words.dropped_words(drop((4, 3))) == "blocks 3 and 4 dropped"
    assert drop_words.dropped_words(greedy()) == "attention of blocks 2 and 3 removed"
    assert drop_words.dropped_words(drop((1,), granularity="mlp")) == "MLP of block 1 removed"
    assert drop_words.criterion_words(drop()) == "block influence"
    assert drop_words.criterion_words(greedy()) == "perplexity, measured anew after each removal"
    assert drop_words.perplexities(greedy()) == pytest.approx(
        [math.exp(loss) for loss in GREEDY["losses"]]
    )
    far, infinite, unknown = drop_words.perplexities(drop(losses=(5000.0, math.inf, math.nan)))
    assert far == infinite == math.inf
    assert math.isnan(unknown)


@pytest.mark.parametrize(
    "criterion",
    ["block_influence", "angular_distance", "relative_magnitude", "perplexity"],
)
def test_every_criterion_has_words_of_its_own(criterion: str) -> None:
    stage = drop(criterion=criterion)
    assert drop_words.score_words(stage) != "Score"
    assert "scores by block" not in drop_words.score_caption(stage)
    assert drop_words.score_caption(stage).startswith(criterion.replace("_", " ").capitalize())


def test_the_axis_says_what_goes() -> None:
    assert drop_words.score_words(greedy()) == "Perplexity without\nthis block’s attention"
    assert drop_words.score_words(drop(criterion="perplexity")) == "Perplexity without\nthis block"


def test_reports_from_before_still_load_and_new_ones_come_back() -> None:
    old = to_plain(report(drop()))
    (stage,) = old["stages"]
    old["stages"] = [
        {key: stage[key] for key in ("stage", "criterion", "block_influence", "dropped", "seconds")}
    ]
    (read,) = from_plain(type(report()), old).stages
    assert isinstance(read, DropRecord)
    assert (read.first_scores, read.order, read.blocks_gone) == (INFLUENCE, (4, 3), (4, 3))
    made = report(greedy())
    assert report_from_text(made.to_json()) == made


def test_what_a_record_says_of_itself() -> None:
    stage = greedy()
    assert (stage.first_scores, stage.order, stage.blocks_gone) == (SCORES, (2, 3), ())
    assert drop((2,), granularity="mlp", emptied=(2,)).blocks_gone == (2,)


def test_the_page_shows_scores_losses_and_what_was_protected() -> None:
    made = page.render_report(report(prune(), greedy()))
    for part in (
        "Stage 2: attention removed from blocks",
        "Attention of blocks 2 and 3 removed (from 0), by perplexity, measured anew",
        "Never to be chosen: 0 and 4.",
        "without each block’s attention alone",
        "Perplexity by number of removals: 0: 24.53, 1: 27.11, 2: 33.12.",
        "Dropped: 2 and 3.",
    ):
        assert part in made


def test_a_span_is_marked_where_it_begins() -> None:
    rounds = (DropRound(scores=(0.3, 0.2, 0.4, None), chosen=(1, 2)),)
    stage = drop((1, 2), criterion="angular_distance", block_influence=(), rounds=rounds)
    made = page.render_report(report(stage))
    assert "Dropped: 1." in made
    assert "by the span’s first block" in made


def test_the_terminal_lists_losses() -> None:
    console = Console(file=StringIO(), width=80)
    console.print(table.report_table(report(greedy())))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "1 2 27.11 +10.5%" in text
    assert "2 3 33.12 +35.0%" in text


def test_pictures_of_scores_leave_out_what_was_not_measured() -> None:
    svg = plots.block_scores_svg(SCORES, (2,), "Perplexity\n(of this)")
    assert "Perplexity by block: 1: 3.4, 2: 3.3, 3: 3.35. Dropped: 2." in svg
    ElementTree.fromstring(svg)
    assert plots.block_scores_svg(SCORES, (2,), "Perplexity\n(of this)") == svg


@pytest.mark.parametrize("values", [(24.0, 27.0), (24.0, math.inf, 31.0), (20.0, 30.0, 4000.0)])
def test_pictures_of_removals(values: tuple[float, ...]) -> None:
    svg = depth_plots.removal_svg(values, (5, 2), "MLP")
    assert "Removed, MLP by MLP" in plain(svg)
    assert "− 5" in plain(svg) or not math.isfinite(values[1])
    assert depth_plots.removal_svg(values, (5, 2), "MLP") == svg


def test_nothing_finite_is_no_picture() -> None:
    with pytest.raises(SecateurError, match="expected a perplexity that is finite"):
        depth_plots.removal_svg((math.nan, math.inf), (1,))
    broken = page.render_report(report(drop(losses=(math.nan, math.nan))))
    assert "Perplexity by number of removals" not in broken
