"""Prompts and responses: what rows hold, as text, and where in it the responses are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.errors import SecateurError
from secateur.texts.dataset_rows import dataset_rows
from secateur.texts.files import file_rows, is_json_lines
from secateur.texts.rows import Row, keys_of
from secateur.texts.sources import source_files
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
_RESPONSE_KEYS = ("response", "completion")
_EXPECTED = f"`messages`, or `prompt` and one of {_RESPONSE_KEYS}"
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Rendered:
    """An example as the text that the model sees."""

    place: str
    text: str
    spans: tuple[tuple[int, int], ...]
    """First and last (exclusive) character of each stretch that the model learns to write."""
    is_templated: bool
    """Whether all special tokens stand in the text; else the text is plain, and the tokens that
    begin and end a text belong around it."""


def resolve_format(text: TrainingText) -> Literal["text", "chat"]:
    """The format that was asked for, or what the first row looks like.

    A row with conversation keys is a conversation, also if it has a `text` beside them.

    Raises:
        SecateurError: a source cannot be read.
    """
    if text.format != "auto":
        return text.format
    row = next(_rows(text), None)
    is_chat = row is not None and isinstance(row.value, Mapping) and _is_example(row.value)
    return "chat" if is_chat else "text"


def chat_rows(text: TrainingText) -> Iterator[Row]:
    """The rows of all sources.

    Raises:
        SecateurError: a source cannot be read, or holds text instead of rows.
    """
    for row in _rows(text):
        if isinstance(row.value, str):
            raise SecateurError(
                f"{row.place}: expected rows with {_EXPECTED} for the chat format, got plain text; "
                "use format: text"
            )
        yield row


def _rows(text: TrainingText) -> Iterator[Row]:
    for source in text.each_source:
        if not isinstance(source, str | Path):
            for number, value in enumerate(source, start=1):
                yield Row("rows", "text", number, value)
            continue
        files = source_files(source, "training")
        if files is None:
            yield from dataset_rows(str(source))
        for path in files or ():
            # Of a text file it is enough to know that it is one.
            yield from file_rows(path) if is_json_lines(path) else (Row(str(path), "file", 1, ""),)


def render(row: Row, tokenizer: Tokenizer) -> Rendered:
    """A row as text, with the spans of its responses.

    With a chat template, a prompt and its response become a user's and an assistant's message.
    Without, they are put together as they are. A response ends with what the template puts behind
    it, white space excepted unless there is nothing else.

    Raises:
        SecateurError: the row has not the keys or roles that are known, the tokenizer has no chat
            template for `messages`, or its template is not prefix-stable.
    """
    value = row.value
    if not isinstance(value, Mapping) or not _is_example(value):
        raise SecateurError(f"{row.place}: expected a row with {_EXPECTED}, got {keys_of(value)}")
    if value.get("tools"):
        raise SecateurError(
            f"{row.place}: expected a conversation without `tools`: they would not be shown to the "
            "chat template, and the model would learn to call what it cannot see"
        )
    if "messages" in value:
        messages = _checked_messages(row, value["messages"])
        if not tokenizer.chat_template:
            raise SecateurError(
                f"{row.place}: the tokenizer has no chat template, so that `messages` cannot be "
                "written out; give `prompt` and `response`, or a tokenizer with a template"
            )
        return _templated(row.place, messages, tokenizer)
    prompt, response = _prompt_and_response(row, value)
    if tokenizer.chat_template:
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
        return _templated(row.place, messages, tokenizer)
    text = prompt + response
    return Rendered(row.place, text, ((len(prompt), len(text)),), is_templated=False)


def _is_example(value: Mapping[str, Any]) -> bool:
    return "messages" in value or (
        "prompt" in value and any(key in value for key in _RESPONSE_KEYS)
    )


def _prompt_and_response(row: Row, value: Mapping[str, Any]) -> tuple[str, str]:
    prompt = value["prompt"]
    response = next(value[key] for key in _RESPONSE_KEYS if key in value)
    for name, text in (("prompt", prompt), ("response", response)):
        if not isinstance(text, str):
            raise SecateurError(
                f"{row.place}: expected the {name} as a string, got {type(text).__name__}"
            )
    return prompt, response


def _checked_messages(row: Row, messages: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) == 0:
        raise SecateurError(
            f"{row.place}: expected `messages` as a list of role and content, "
            f"got {str(messages)[:80]}"
        )
    if isinstance(messages[0], Mapping) and messages[0].get("role") == "assistant":
        raise SecateurError(
            f"{row.place}: expected `messages` to begin with another role than assistant: what a "
            "template puts before a first response cannot be told from the response"
        )
    for number, message in enumerate(messages, start=1):
        place = f"{row.place}, message {number}"
        if not isinstance(message, Mapping) or "role" not in message:
            raise SecateurError(
                f"{place}: expected an object with role and content, got {str(message)[:80]}"
            )
        if message["role"] not in ROLES:
            raise SecateurError(
                f"{place}: expected a role out of {', '.join(ROLES)}, got {message['role']!r}"
            )
        # A message that calls a tool may say nothing.
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise SecateurError(
                f"{place}: expected content as a string, "
                f"got {type(message.get('content')).__name__}"
            )
    return messages


def _templated(place: str, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Rendered:
    whole = _written(place, messages, tokenizer, prompts=False)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _written(place, messages[:index], tokenizer, prompts=True)
        through = _written(place, messages[: index + 1], tokenizer, prompts=False)
        for count, prefix in ((index, before), (index + 1, through)):
            _check_prefix(place, count, prefix, whole)
        spans.append((len(before), _end(whole, len(before), len(through), message)))
    return Rendered(place, whole, tuple(spans), is_templated=True)


def _written(
    place: str, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, prompts: bool
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompts
        )
    except Exception as error:  # whatever a template raises
        raise SecateurError(
            f"{place}: the chat template refuses the first {len(messages)} messages: {error}"
        ) from error
    return str(text)


def _check_prefix(place: str, count: int, prefix: str, whole: str) -> None:
    if whole.startswith(prefix):
        return
    pairs = zip(prefix, whole, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prefix), len(whole)))
    raise SecateurError(
        f"{place}: the chat template is not prefix-stable, so that responses cannot be told from "
        f"prompts: after character {same}, the first {count} messages alone go on with "
        f"{prefix[same : same + _SHOWN_CHARACTERS]!r}, the whole conversation with "
        f"{whole[same : same + _SHOWN_CHARACTERS]!r}; give each response a row of its own, or the "
        "tokenizer another chat_template"
    )


def _end(whole: str, begin: int, end: int, message: Mapping[str, Any]) -> int:
    """Where a response ends: behind the token that ends the turn, before a line end after that."""
    span = whole[begin:end]
    content = (message.get("content") or "").strip()  # some templates strip it
    # Where the template writes a response otherwise, it surely ends the turn too.
    behind = span.partition(content)[2] if content and content in span else span
    return begin + len(span.rstrip()) if behind.strip() else end
