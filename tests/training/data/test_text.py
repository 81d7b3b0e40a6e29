from pathlib import Path
from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.training.data import TrainingText


@pytest.mark.parametrize(
    ("sources", "each", "name"),
    [
        ("a.txt", ("a.txt",), "a.txt"),
        (Path("a.txt"), (Path("a.txt"),), "a.txt"),
        (["a.txt", Path("b")], ("a.txt", Path("b")), "a.txt, b"),
        ([["one", "two"]], (("one", "two"),), "2 texts"),
        (["a", [{"prompt": "x"}]], ("a", ({"prompt": "x"},)), "a, 1 texts"),
    ],
)
def test_sources(sources: Any, each: tuple[Any, ...], name: str) -> None:
    text = TrainingText(sources)
    assert text.each_source == each
    assert text.name == name


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], r"expected training text as a path, .*; got \[\]"),
        (5, "expected training text as a path, .*; got int"),
        ([5], "expected each training source as a path, .* or rows; got 5"),
        ([["one", 2]], r"expected each training source .*; got \['one', 2\]"),
        ([["one", "a \ud800"]], "expected texts, but text 2 of 2 holds half a character"),
        ([[{"prompt": "\udc00", "response": "b"}]], "text 1 of 1 holds half a character"),
    ],
)
def test_sources_that_are_none_are_refused(sources: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        TrainingText(sources)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "chatty"}, "format one of auto, text, chat, got 'chatty'"),
        ({"max_seq_length": 1}, "max_seq_length of at least 2, got 1"),
        ({"max_tokens": 0}, "max_tokens of at least 1, got 0"),
        ({"shuffle_buffer": -1}, "shuffle_buffer of at least 0, got -1"),
        ({"seed": -1}, "seed of at least 0, got -1"),
        ({"document_separator": ""}, "a document_separator without white space .*, got ''"),
        ({"document_separator": " x"}, "a document_separator without white space .*, got ' x'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=f"expected .*{message}"):
        TrainingText("a.txt", **options)
