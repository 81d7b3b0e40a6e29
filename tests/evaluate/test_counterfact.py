import json
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.evaluate.counterfact import Fact, is_counterfact, read_counterfact
from secateur.evaluate.items import Cloze

PUBLISHED = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": [
        "Shayna does this. Danielle Darrieux, a native",
        "She {speaks}. D. spoke ",
    ],
    "neighborhood_prompts": ["The mother tongue of Montesquieu is"],
}
FLAT = {"subject": "Rome", "relation": "{} lies in", "answer": " Italy "}
EXPECTED = (
    Fact(
        "The mother tongue of Danielle Darrieux is",
        ("Shayna does this. Danielle Darrieux, a native", "She {speaks}. D. spoke"),
        "French",
    ),
    Fact("Rome lies in", (), "Italy"),
)


def as_lines(path: Path, *records: Any) -> Path:
    path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_reads_both_formats_from_lines_and_from_an_array(tmp_path: Path) -> None:
    lines = as_lines(tmp_path / "facts.jsonl", PUBLISHED, FLAT)
    array = tmp_path / "facts.json"
    array.write_text(json.dumps([PUBLISHED, FLAT], indent=2), encoding="utf-8")
    assert read_counterfact(lines) == EXPECTED
    assert read_counterfact(array) == EXPECTED
    assert read_counterfact(array, limit=1) == EXPECTED[:1]
    assert is_counterfact(lines)
    assert is_counterfact(array)


def test_paraphrases_are_questions_of_their_own(tmp_path: Path) -> None:
    record = {**FLAT, "paraphrases": ["The land of {subject} is called", "Romans live in "]}
    (fact,) = read_counterfact(as_lines(tmp_path / "facts.jsonl", record))
    assert fact.items() == {
        "original": (Cloze("Rome lies in ", "Italy"),),
        "paraphrase": (
            Cloze("The land of Rome is called ", "Italy"),
            Cloze("Romans live in ", "Italy"),
        ),
    }


@pytest.mark.parametrize("text", ["", '{"text": "a b"}', "[1, 2]", "[]", "no JSON", '"text"'])
def test_other_files_are_not_facts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text, encoding="utf-8")
    assert not is_counterfact(path)
    assert not is_counterfact(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "line 1: expected a fact, but got list|record 1: expected a fact, but got int"),
        ({"subject": "a", "relation": "{} b"}, "line 1: expected the keys .*answer is missing"),
        ({**FLAT, "answer": " "}, "expected answer to be text that is not blank, but got ' '"),
        ({**FLAT, "subject": 3}, "expected subject to be text that is not blank, but got 3"),
        ({**FLAT, "relation": "is in"}, r"expected relation to hold \{\} where the subject stands"),
        ({**FLAT, "paraphrases": "x"}, "expected paraphrases to be a list of texts .* got 'x'"),
        ({**FLAT, "paraphrases": [""]}, "expected paraphrases to be a list of texts"),
        ({"requested_rewrite": 1}, "expected requested_rewrite to be an object, got 1"),
        ({"requested_rewrite": {"prompt": "{}"}}, "subject, target_true is missing"),
        (
            {"requested_rewrite": {"prompt": "{}", "subject": "a", "target_true": "b"}},
            "expected the answer in target_true.str, but got 'b'",
        ),
    ],
)
def test_bad_records(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        read_counterfact(as_lines(tmp_path / "facts.jsonl", record))


def test_bad_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(SecateurError, match=r"expected facts in .* but it is empty"):
        read_counterfact(empty)
    with pytest.raises(SecateurError, match="expected a limit of at least 1 item, but got 0"):
        read_counterfact(empty, limit=0)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(FLAT) + "\n{")
    with pytest.raises(SecateurError, match="line 2: expected JSON"):
        read_counterfact(broken)
    with pytest.raises(SecateurError, match="is not a file"):
        read_counterfact(tmp_path)
