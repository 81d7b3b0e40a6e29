import json
from pathlib import Path
from typing import Any

import pytest
from words import choices, clozes, pairs, task

from secateur.errors import SecateurError
from secateur.evaluate.items import Cloze, MinimalPair, MultipleChoice
from secateur.search import CallableTask, ItemTask, LmEvalTask, Question, load_task
from secateur.search.task import answer_of

CHOICE = {"context": "a b", "choices": [" c", "d"], "answer": 1}
PAIR = {"sentence_good": "a b", "sentence_bad": "b a"}
CLOZE = {"text": "a b c"}
FACT = {"subject": "x", "relation": "{} is", "answer": "y", "paraphrases": ["the {} was"]}


def write(path: Path, *records: Any) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


@pytest.mark.parametrize(
    ("record", "kind", "number"),
    [
        (CHOICE, "multiple choice", 3),
        (PAIR, "minimal pairs", 3),
        (CLOZE, "cloze", 3),
        (FACT, "facts", 6),
    ],
)
def test_files_are_told_by_their_keys(record: Any, kind: str, number: int, tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", *[record] * 3)
    loaded = load_task(path, "loss")
    assert isinstance(loaded, ItemTask)
    assert (loaded.name, loaded.kind, loaded.metric) == ("items", kind, "loss")
    assert len(loaded.questions) == number
    assert len({question.unit for question in loaded.questions}) == 3
    assert loaded.lower_is_better
    limited = load_task(path, limit=2)
    assert isinstance(limited, ItemTask)
    assert not limited.lower_is_better
    assert len({question.unit for question in limited.questions}) == 2


def test_other_names_are_those_of_lm_eval(tmp_path: Path) -> None:
    assert load_task("arc_easy", limit=7, seed=3) == LmEvalTask("arc_easy", 7, 3)
    with pytest.raises(SecateurError, match="is not a file"):
        load_task("arc_easy.jsonl")
    with pytest.raises(SecateurError, match="expected a file for the metric loss, or accuracy"):
        load_task("arc_easy", "loss")
    with pytest.raises(SecateurError, match="expected a limit of at least 2 items, but got 1"):
        load_task("arc_easy", limit=1)


@pytest.mark.parametrize(
    ("records", "metric", "message"),
    [
        ([], "accuracy", "expected items in .*, one a line, but it is empty"),
        ([CLOZE], "accuracy", "at least 2 items in task items, .* but got 1"),
        ([{"context": "a", "choices": ["b", "c"]}], "accuracy", "expected an object with the keys"),
        ([CHOICE, PAIR], "accuracy", "line 2: expected one format in a file"),
        ([FACT, CHOICE], "accuracy", "line 2: expected the keys answer, relation, subject"),
        ([{**FACT, "answer": ""}] * 2, "accuracy", "expected answer to be text that is not blank"),
        ([{"requested_rewrite": {"prompt": "{}", "subject": "a"}}] * 2, "loss", "target_true is m"),
        ([PAIR] * 2, "generation", "task items has items without a context"),
        ([{**CHOICE, "context": " "}] * 2, "generation", "has items without a context"),
        ([CLOZE] * 2, "f1", "expected a metric out of accuracy, generation, loss, but got 'f1'"),
    ],
)
def test_bad_files(records: list[Any], metric: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", *records)
    with pytest.raises(SecateurError, match=message):
        load_task(path, metric)


def test_bad_tasks() -> None:
    mixed = tuple(Question(item, unit) for unit, item in enumerate([*choices(1), *pairs(1)]))
    with pytest.raises(SecateurError, match="of one kind in task x, but got MinimalPair, Multi"):
        ItemTask("x", mixed)
    with pytest.raises(SecateurError, match="at least 2 items in task x"):
        ItemTask("x", ())
    same = tuple(Question(item, 0) for item in clozes(3))
    with pytest.raises(SecateurError, match=r"at least 2 items in task x, .* but got 1"):
        ItemTask("x", same)
    with pytest.raises(SecateurError, match="expected at least 1 new token, but got 0"):
        ItemTask("x", task(clozes(2)).questions, max_new_tokens=0)
    with pytest.raises(SecateurError, match=r"at least 2 items in task f, .* but got 1"):
        CallableTask("f", 1, lambda model, items: [0.0])


def test_digests_see_what_decides_a_score() -> None:
    first = task(clozes(5))
    assert first.digest == task(clozes(5), name="other name").digest
    others = [task(clozes(5), "loss"), task(clozes(5, seed=1)), task(clozes(4))]
    assert all(other.digest != first.digest for other in others)
    assert LmEvalTask("a").digest != LmEvalTask("a", limit=3).digest


def test_answers() -> None:
    assert answer_of(MultipleChoice("c", (" x", " y "), 1)) == ("c", "y")
    assert answer_of(Cloze("c ", "x")) == ("c ", "x")
    assert answer_of(MinimalPair("g", "b")) == ("", "g")
