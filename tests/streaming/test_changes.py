from typing import Any

import pytest

from secateur.streaming.changes import changes


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"a": 1, "b": [1, {"c": 2}]}, {"a": 1, "b": [1, {"c": 3}]}, ["b.1.c was 2, is 3"]),
        ({"a": 1}, {"b": 2}, ["a was 1, is absent", "b was absent, is 2"]),
        ({"a": {"b": 1}}, {"a": None}, ["a was {'b': 1}, is None"]),
        ({"a": None}, {"a": {"b": 1}}, ["a was None, is {'b': 1}"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a was [1, 2], is [1]"]),
        ({"a": [1, 2]}, {"a": 3}, ["a was [1, 2], is 3"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a.0 was 1, is 2", "a.1 was 2, is 1"]),
        ({"a": "x" * 80}, {"a": "y" * 81}, [f"a was {'x' * 80}, is {'y' * 77}..."]),
    ],
)
def test_the_innermost_values_that_differ(
    before: dict[str, Any], now: dict[str, Any], told: list[str]
) -> None:
    assert changes(before, now) == told
    assert changes(before, before) == []
