import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from builders import report
from rich.console import Console, RenderableType
from training_builders import inherit, recover, run

from secateur.plain import to_plain
from secateur.report import training_words as words
from secateur.report.page import render_report
from secateur.report.record import report_from_text
from secateur.report.table import report_notes
from secateur.report.training_record import InheritRecord, InheritRound, RecoverRecord


def shown(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def rows(text: str) -> list[list[str]]:
    """Cells of a table, its head first; the title and the rule are left out."""
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    start = next(place for place, line in enumerate(lines) if line.strip(" ─") == "")
    return [
        line.split() for place, line in enumerate(lines) if place >= start - 1 and place != start
    ]


# Figures.


def test_what_was_recovered() -> None:
    # Compression had cost 1.5 nats; 1.125 came back.
    assert recover().recovered == 0.75
    assert recover(dense_loss=None).recovered is None
    # The dense model is no better than what is trained: nothing had been lost.
    assert recover(dense_loss=5.25).recovered is None
    assert recover(dense_loss=6.0).recovered is None
    assert recover((5.25, 5.625)).recovered == -0.25
    assert recover((5.25, 3.0)).recovered == 1.5


def test_speed() -> None:
    assert run(seconds=300.0).tokens_per_second == 4096.0
    assert run(seconds=0.0).tokens_per_second == 0.0


@pytest.mark.parametrize(
    ("loss", "tolerance", "matched"),
    [(3.75, 0.0, True), (3.76, 0.0, False), (3.8125, 0.0625, True), (math.nan, 1.0, False)],
)
def test_matched(loss: float, tolerance: float, matched: bool) -> None:
    record = inherit(InheritRound(num_blocks=4, run=run((4.5, loss))), tolerance=tolerance)
    assert record.matched == matched
    assert record.loss is record.rounds[-1].run.loss_after


# Sentences.


def test_titles() -> None:
    assert words.training_title(recover()) == "recover by gates"
    assert words.training_title(recover(method="head_and_last_blocks")) == (
        "recover by head and last blocks"
    )
    assert words.training_title(inherit()) == "inherit 4, 6 of 8 blocks (inherited)"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            recover(),
            "4,227,072 parameters trained by gates on 1,228,800 tokens: loss 5.250 to 4.125, "
            "which won back 75% of what compression had cost",
        ),
        (
            recover(dense_loss=None),
            "4,227,072 parameters trained by gates on 1,228,800 tokens: loss 5.250 to 4.125",
        ),
        (
            recover((5.25, 5.625), dense_loss=None),
            "4,227,072 parameters trained by gates on 409,600 tokens: loss 5.250 to 5.625, worse "
            "than before",
        ),
        (
            recover((5.25, 5.625)),
            "4,227,072 parameters trained by gates on 409,600 tokens: loss 5.250 to 5.625, worse "
            "than before",
        ),
        (
            inherit(),
            "a model of 6 of 8 blocks (inherited) trained in 2 rounds: loss 3.688, which reached "
            "the parent's 3.750",
        ),
        (
            inherit(InheritRound(num_blocks=4, run=run((4.5, 4.0))), start="random"),
            "a model of 4 of 8 blocks (random) trained in 1 round: loss 4.000, which did not reach "
            "the parent's 3.750",
        ),
    ],
)
def test_words(record: Any, expected: str) -> None:
    assert words.training_words(record) == expected


def test_facts_of_a_recovery() -> None:
    first, second, third, fourth = words.training_facts(recover())
    assert first == f"{words.training_words(recover())}."
    assert second == (
        "Trained on 1,900 windows of 512 tokens of books.txt with a peak learning rate of 0.001; "
        "the loss is the mean over 64 windows of evaluation.txt that were not trained on, in nats "
        "a token."
    )
    assert third == "2,731 tokens a second. The weights of step 300 of 300 were kept."
    assert fourth == (
        "The dense model has 3.750 on the same windows: what was recovered is 0.375 above it "
        f"(perplexity {math.exp(4.125):.2f} against {math.exp(3.75):.2f})."
    )
    assert len(words.training_facts(recover(dense_loss=None))) == 3
    better = words.training_facts(recover(dense_loss=4.5))[-1]
    assert "what was recovered is 0.375 below it" in better


def test_facts_of_an_inheritance_are_of_the_last_round() -> None:
    early = run((4.5, 4.25, 4.0), ending="early", note="no better loss in 2 evaluations")
    record = inherit(
        InheritRound(num_blocks=4, run=early),
        InheritRound(num_blocks=6, run=run((4.0, 3.875), num_steps=80, kept_step=70)),
    )
    facts = words.training_facts(record)
    assert len(facts) == 4
    assert facts[0].startswith("A model of 6 of 8 blocks (inherited) trained in 2 rounds")
    assert "The weights of step 70 of 80 were kept." in facts[2]
    assert facts[3] == "No better loss in 2 evaluations."


NOTE = (
    "training diverged: the loss is not finite after 150 steps; the weights of step 100 were kept"
)


def diverged() -> Any:
    changes = {"ending": "diverged", "note": NOTE, "kept_step": 100, "num_steps": 150}
    changes |= {"loss_after": 4.5}
    return recover((5.25, 4.5, math.nan), run_changes=changes, warnings=(NOTE,))


def test_divergence_is_told() -> None:
    assert words.training_facts(diverged())[-1] == f"T{NOTE[1:]}."
    assert words.training_notes(diverged()) == [NOTE]
    assert words.training_notes(recover()) == []
    assert any(NOTE in note for note in report_notes(report(diverged())))


def test_what_was_wrong_with_the_texts_is_told_once() -> None:
    remark = "examples cut at the end of a window: 1 of 3 in chats.jsonl"
    data = replace(run().data, remarks=(remark,))
    turn = InheritRound(num_blocks=4, run=run(data=data))
    for record in (recover(run_changes={"data": data}), inherit(turn, turn)):
        assert words.training_notes(record) == [remark]
        written = report(record)
        assert report_notes(written) == [remark]
        assert remark in render_report(written)
        assert report_notes(report_from_text(written.to_json())) == [remark]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e4])
def test_losses_beyond_numbers(loss: float) -> None:
    for record in (recover((5.25, loss)), recover(dense_loss=loss), recover((loss, 4.0))):
        assert all(words.training_facts(record))
        assert shown(words.training_table(1, record))
    last = inherit(InheritRound(num_blocks=4, run=run((4.5, loss))), parent_loss=3.0)
    assert "which did not reach the parent's 3.000" in words.training_facts(last)[0]
    assert shown(words.training_table(1, last))


# Tables.


def test_the_curve_as_a_table() -> None:
    text = shown(words.training_table(3, recover()))
    assert text.startswith("Stage 3: 4,227,072 parameters trained by gates")
    head, *lines = rows(text)
    assert " ".join(head) == "Step Tokens Seconds Loss trained on Held out To dense"
    assert lines == [
        ["0", "0", "0", "–", "5.2500", "+1.5000"],
        ["100", "409,600", "150", "4.4375", "4.5000", "+0.7500"],
        ["200", "819,200", "300", "4.1875", "4.2500", "+0.5000"],
        ["300", "1,228,800", "450", "4.0625", "4.1250", "+0.3750"],
    ]
    without = rows(shown(words.training_table(3, recover(dense_loss=None))))
    assert [line[-1] for line in without[1:]] == ["–"] * 4


@pytest.mark.parametrize("count", [1, 2, 8, 9, 23, 200])
def test_a_long_curve_is_thinned_out(count: int) -> None:
    losses = [5.0 - 0.01 * place for place in range(count)]
    steps = [int(line[0].replace(",", "")) // 100 for line in _steps(losses)]
    assert steps[0] == 0
    assert steps[-1] == count - 1
    assert len(steps) == min(count, 8)
    assert steps == sorted(set(steps))
    gaps = [second - first for first, second in pairwise(steps)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def _steps(losses: list[float]) -> list[list[str]]:
    return rows(shown(words.training_table(1, recover(losses))))[1:]


def test_rounds_as_a_table() -> None:
    head, *lines = rows(shown(words.training_table(1, inherit())))
    assert " ".join(head) == "Round Blocks Tokens Seconds Before After To parent"
    assert lines == [
        ["1", "4", "819,200", "300", "4.5000", "4.0000", "+0.2500"],
        ["2", "6", "819,200", "300", "3.9375", "3.6875", "-0.0625"],
    ]


@pytest.mark.parametrize("record", [recover(), inherit(), diverged()])
def test_tables_fit_a_terminal(record: Any) -> None:
    assert max(map(len, shown(words.training_table(1, record), 80).splitlines())) <= 80


# Reports.


@pytest.mark.parametrize("record", [recover(), inherit(), diverged(), recover(dense_loss=None)])
def test_reports_come_back_and_are_pages(record: Any) -> None:
    made = report(record)
    again = report_from_text(made.to_json())
    assert again.to_json() == made.to_json()
    assert repr(again) == repr(made)
    page = render_report(made)
    for fact in words.training_facts(record)[1:3]:
        assert fact in page
    assert "<svg" in page


@pytest.mark.parametrize("record", [recover(), inherit()])
def test_reports_from_before_have_no_remarks(record: RecoverRecord | InheritRecord) -> None:
    old = to_plain(report(record))
    (stage,) = old["stages"]
    for trained in stage.get("rounds", [stage]):
        del trained["run"]["data"]["remarks"]
    read = report_from_text(json.dumps(old))
    assert read.stages == (record,)
    assert report_notes(read) == []
