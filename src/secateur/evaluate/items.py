"""Task items from JSON lines files; the format is recognised by the keys of a line.

| keys of a line                | what is asked                                                 |
|-------------------------------|---------------------------------------------------------------|
| `context, choices, answer`    | which choice (index from 0) continues the context             |
| `sentence_good, sentence_bad` | which sentence is the acceptable one (BLiMP)                  |
| `text`, and perhaps `target`  | the last word, or the target that `text` ends with (LAMBADA)  |

Other keys are ignored, and so are blank lines.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.texts.rows import is_text


@dataclass(frozen=True)
class MultipleChoice:
    """Which of the choices continues the context?"""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class MinimalPair:
    """Which of two sentences is acceptable?"""

    good: str
    bad: str


@dataclass(frozen=True)
class Cloze:
    """What follows the context, exactly? Whitespace between the two is part of the context."""

    context: str
    target: str


Item = MultipleChoice | MinimalPair | Cloze

_EXPECTED = (
    "expected an object with the keys context, choices, answer, or sentence_good, sentence_bad, "
    "or text"
)


def read_items(path: str | Path, limit: int | None = None) -> tuple[Item, ...]:
    """The items of a JSON lines file, or the first `limit` of them; all of one format.

    Raises:
        SecateurError: with file, line, what was expected and what came.
    """
    path = Path(path)
    check_limit(limit)
    items: list[Item] = []
    for where, line in text_lines(path):
        items.append(_parse_line(line, where))
        if type(items[-1]) is not type(items[0]):
            raise SecateurError(f"{where}: expected one format in a file, but it changes here")
        if len(items) == limit:
            break
    if not items:
        raise SecateurError(f"expected items in {path}, one a line, but it is empty")
    return tuple(items)


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves no item."""
    if limit is not None and limit < 1:
        raise SecateurError(f"expected a limit of at least 1 item, but got {limit}")


def is_task_file(task: str) -> bool:
    """Whether a task is named by a file, and not by its name in lm-eval.

    Whatever looks like a path is one, so that a misspelt file is not taken for a task's name.
    """
    return task.endswith((".jsonl", ".json")) or "/" in task or Path(task).exists()


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The UTF-8 lines of a file that are not blank, each after where it stands, for messages.

    The file may begin with a byte order mark, as other texts may.

    Raises:
        SecateurError: there is no such file, or a line is not UTF-8.
    """
    if not path.is_file():
        raise SecateurError(f"expected a JSON lines file, but {path} is not a file")
    # Bytes, so that only line feeds end a line: text may hold other separators.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if line.strip():
                yield (where := f"{path}, line {number}"), _decode(line, where)


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SecateurError(f"{where}: expected UTF-8, but {error.reason}") from None


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        SecateurError: it is none, or an escape in it is half a character, which no tokenizer
            takes; `where` says in which line.
    """
    try:
        value = json.loads(text)
        has_characters = is_text(value)
    except (ValueError, RecursionError) as error:  # numbers too long, values too deep
        raise SecateurError(f"{where}: expected JSON, but {error}") from None
    if not has_characters:
        raise SecateurError(
            f"{where}: a \\u escape stands for half a character (a surrogate without its other "
            "half), which is no text"
        )
    return value


def _parse_line(line: str, where: str) -> Item:
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise SecateurError(f"{where}: {_EXPECTED}; got {type(record).__name__}")
    if {"context", "choices", "answer"} <= record.keys():
        return _multiple_choice(record, where)
    if {"sentence_good", "sentence_bad"} <= record.keys():
        texts = (required_text(record, key, where) for key in ("sentence_good", "sentence_bad"))
        return MinimalPair(*texts)
    if "text" in record:
        return _cloze(record, where)
    raise SecateurError(f"{where}: {_EXPECTED}; got the keys {', '.join(record) or 'none'}")


def _multiple_choice(record: dict[str, Any], where: str) -> MultipleChoice:
    context = record["context"]
    if not isinstance(context, str):
        raise SecateurError(f"{where}: expected context to be a string, but got {context!r}")
    choices = record["choices"]
    if not _are_texts(choices) or len(choices) < 2:
        raise SecateurError(
            f"{where}: expected choices to be two or more strings that are not blank, "
            f"but got {choices!r}"
        )
    return MultipleChoice(context, tuple(choices), _answer(record["answer"], len(choices), where))


def _are_texts(choices: object) -> bool:
    return isinstance(choices, list) and all(
        isinstance(choice, str) and choice.strip() for choice in choices
    )


def _answer(answer: object, num_choices: int, where: str) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < num_choices:
        return answer
    raise SecateurError(
        f"{where}: expected answer to be an index from 0 to {num_choices - 1}, but got {answer!r}"
    )


def _cloze(record: dict[str, Any], where: str) -> Cloze:
    text = required_text(record, "text", where).rstrip()
    target = (
        required_text(record, "target", where).strip() if "target" in record else _last_word(text)
    )
    if not text.endswith(target):
        raise SecateurError(f"{where}: expected text to end with target, but it is {target!r}")
    context = text[: len(text) - len(target)]
    if not context.strip():
        raise SecateurError(
            f"{where}: expected words before {target!r} in text, but there are none"
        )
    return Cloze(context, target)


def _last_word(text: str) -> str:
    return re.split(r"\s", text)[-1]


def required_text(record: dict[str, Any], key: str, where: str) -> str:
    """The text under a key.

    Raises:
        SecateurError: it is blank or something else; `where` says in which line.
    """
    value = record[key]
    if isinstance(value, str) and value.strip():
        return value
    raise SecateurError(f"{where}: expected {key} to be text that is not blank, but got {value!r}")
