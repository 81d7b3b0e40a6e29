"""What a source holds, one row after another, each with the place where it stands."""

import json
from dataclasses import dataclass
from typing import Literal

from secateur.errors import SecateurError

TEXT_KEYS = ("text", "content")


@dataclass(frozen=True)
class Row:
    """A document, or what a JSON line or a dataset's row holds."""

    source: str
    """The file, the dataset's name, or what else the row is from."""
    kind: Literal["file", "line", "row", "text"]
    number: int
    """Counted from 1 within the source."""
    value: object

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return self.source if self.kind == "file" else f"{self.source}, {self.kind} {self.number}"


def text_of(row: Row) -> str:
    """The text of a row: a string, or what stands under `text` or `content`.

    Raises:
        SecateurError: it has none.
    """
    value = row.value
    if isinstance(value, dict):
        value = next((value[key] for key in TEXT_KEYS if key in value), None)
    if isinstance(value, str):
        return value
    if row.kind == "row":
        raise SecateurError(
            f"{row.source}: expected rows with one of the keys {TEXT_KEYS}, "
            f"got {keys_of(row.value)} in row {row.number}"
        )
    raise SecateurError(
        f"{row.place}: expected a string, or an object with one of the keys {TEXT_KEYS}; "
        f"got {json.dumps(row.value, ensure_ascii=False, default=str)[:80]}"
    )


def is_text(value: object) -> bool:
    """Whether no string in a row's value holds half a character, which no tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def keys_of(value: object) -> str:
    """What a row consists of, for messages."""
    return str(sorted(map(str, value))) if isinstance(value, dict) else str(value)[:80]
