"""Text files, plain or gzipped, as lines, rows and pieces."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from secateur.errors import SecateurError
from secateur.texts.rows import Row, is_text

TEXT_SUFFIXES = (".txt", ".md", ".txt.gz")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_json_lines(path: Path) -> bool:
    """Whether a file is read as JSON lines; every other is one text."""
    return path.name.endswith(JSON_SUFFIXES)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A file as UTF-8 text, with or without a byte order mark, its line ends made newlines.

    Raises:
        SecateurError: it is no such text, breaks off, or may not be read.
    """
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8-sig") as file:
                yield file
        else:
            with path.open(encoding="utf-8-sig") as file:
                yield file
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SecateurError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise SecateurError(f"{path} cannot be read: {error.strerror}") from None


def file_rows(path: Path) -> Iterator[Row]:
    """The JSON values of a JSON-lines file, or the text of any other file as one row.

    Raises:
        SecateurError: it is not UTF-8 text, or a line is not JSON that stands for text.
    """
    with open_text(path) as file:
        if is_json_lines(path):
            yield from _json_rows(path, file)
        else:
            yield Row(str(path), "file", 1, file.read())


def _json_rows(path: Path, lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.rstrip("\n"))
        except (ValueError, RecursionError) as error:  # numbers too long, values too deep
            raise SecateurError(f"{path}, line {number}: not JSON: {error}") from None
        if _ESCAPED_SURROGATE.search(line) and not is_text(value):
            raise SecateurError(
                f"{path}, line {number}: a \\u escape stands for half a character (a surrogate "
                "without its other half), which is no text"
            )
        yield Row(str(path), "line", number, value)
