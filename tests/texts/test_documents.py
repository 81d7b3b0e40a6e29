"""Texts that hold several documents."""

import pytest

from secateur.texts.documents import SEPARATOR, split_documents


def spelled_out(text: str) -> int:
    return len(text)


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one", ["one"]),
        ("  one\n\n", ["  one\n\n"]),
        ("", [""]),
        (f"one\n{SEPARATOR}\ntwo", ["one", "two"]),
        (
            f"one\n {SEPARATOR} \n\n two\r\n{SEPARATOR}\r\nthree\n{SEPARATOR}",
            ["one", "two", "three"],
        ),
        (f"{SEPARATOR}\n{SEPARATOR}\none\n\ntwo\n{SEPARATOR}\n\n{SEPARATOR}", ["one\n\ntwo"]),
        (f"of {SEPARATOR} in a line\n", [f"of {SEPARATOR} in a line\n"]),
        (SEPARATOR, []),
    ],
)
def test_documents_stand_between_lines_of_the_separator(text: str, documents: list[str]) -> None:
    assert split_documents(text, spelled_out) == documents


def test_a_tokenizer_that_knows_the_separator_is_left_to_it() -> None:
    text = f"one\n{SEPARATOR}\ntwo"
    assert split_documents(text, lambda _: 1) == [text]
