import json
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.evaluate.items import Cloze, Item, MinimalPair, MultipleChoice, read_items

CHOICE = {"context": "a", "choices": ["b", "c"], "answer": 1}


def write(path: Path, *records: Any) -> Path:
    file = path / "items.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("record", "item"),
    [
        (CHOICE, MultipleChoice("a", ("b", "c"), 1)),
        (CHOICE | {"context": "", "id": 3}, MultipleChoice("", ("b", "c"), 1)),
        ({"sentence_good": "He is.", "sentence_bad": "He are."}, MinimalPair("He is.", "He are.")),
        ({"text": "one two  three\n"}, Cloze("one two  ", "three")),
        ({"text": "one\ntwo\u2028x"}, Cloze("one\ntwo\u2028", "x")),
        ({"text": "one two three.", "target": "two three."}, Cloze("one ", "two three.")),
        ({"text": "one two ", "target": " two"}, Cloze("one ", "two")),
    ],
)
def test_format_is_recognised_by_keys(tmp_path: Path, record: Any, item: Item) -> None:
    assert read_items(write(tmp_path, record)) == (item,)


def test_blank_lines_are_ignored_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('\n{"text": "a b"}\n  \n{"text": "a"}\n')
    assert read_items(file, limit=1) == (Cloze("a ", "b"),)
    with pytest.raises(SecateurError, match=r"items.jsonl, line 4: expected words before 'a'"):
        read_items(file)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": "a b"}\n{"text": "c d"}\n', encoding="utf-8-sig")
    assert read_items(file) == (Cloze("a ", "b"), Cloze("c ", "d"))


def test_limit_takes_the_first_items(tmp_path: Path) -> None:
    file = write(tmp_path, *({"text": f"a {number}"} for number in range(5)))
    assert [item.target for item in read_items(file, 2) if isinstance(item, Cloze)] == ["0", "1"]
    assert len(read_items(file, 9)) == 5


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "expected an object with the keys context, .*; got list"),
        ({"question": "a", "b": 1}, "or text; got the keys question, b"),
        ({}, "or text; got the keys none"),
        (CHOICE | {"context": None}, "expected context to be a string, but got None"),
        (CHOICE | {"choices": "bc"}, "expected choices to be two or more strings .* got 'bc'"),
        (CHOICE | {"choices": ["b"]}, r"expected choices to be two or more .* got \['b'\]"),
        (CHOICE | {"choices": ["b", " "]}, "expected choices to be two or more .* not blank"),
        (CHOICE | {"choices": ["b", 2]}, "expected choices to be two or more strings"),
        (CHOICE | {"answer": 2}, "expected answer to be an index from 0 to 1, but got 2"),
        (CHOICE | {"answer": -1}, "expected answer to be an index from 0 to 1, but got -1"),
        (CHOICE | {"answer": "B"}, "expected answer to be an index from 0 to 1, but got 'B'"),
        (CHOICE | {"answer": True}, "expected answer to be an index from 0 to 1, but got True"),
        ({"sentence_good": 1, "sentence_bad": "a"}, "expected sentence_good to be text .* got 1"),
        ({"sentence_good": "a", "sentence_bad": ""}, "expected sentence_bad to be text .* got ''"),
        ({"text": " "}, "expected text to be text that is not blank, but got ' '"),
        ({"text": "one"}, "expected words before 'one' in text, but there are none"),
        ({"text": "one two", "target": "one"}, "text to end with target, but it is 'one'"),
        ({"text": "one two", "target": 2}, "expected target to be text .*, but got 2"),
    ],
)
def test_line_that_is_not_an_item_is_refused(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=rf"items.jsonl, line 1: .*{message}"):
        read_items(write(tmp_path, record))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a b"}\n{"text": ', "line 2: expected JSON, but Expecting value"),
        (b'{"text": "a \xff"}', "line 1: expected UTF-8, but invalid start byte"),
        (b'{"text": "a \\ud800"}', "line 1: a .u escape stands for half a character"),
        (b"[" * 100_000, "line 1: expected JSON, but "),
        (b"\n\n", "expected items in .*items.jsonl, one a line, but it is empty"),
        (
            b'{"text": "a b"}\n{"sentence_good": "a", "sentence_bad": "b"}',
            "line 2: expected one format in a file, but it changes here",
        ),
    ],
)
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(content)
    with pytest.raises(SecateurError, match=message):
        read_items(file)


def test_values_of_any_depth_are_read_or_refused(tmp_path: Path) -> None:
    """To look for half characters in a value takes more of the stack than to read it."""
    file, most = tmp_path / "items.jsonl", sys.getrecursionlimit()
    refused = []
    for depth in range(most - 400, most + 1):
        file.write_text('{"text": "a b", "more": ' + "[" * depth + "]" * depth + "}")
        try:
            assert read_items(file) == (Cloze("a ", "b"),)
        except SecateurError:
            refused.append(depth)
    assert most - 400 not in refused


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SecateurError, match=r"expected a JSON lines file, but .*none is not a file"
    ):
        read_items(tmp_path / "none")


def test_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="a limit of at least 1 item, but got 0"):
        read_items(write(tmp_path, CHOICE), limit=0)
