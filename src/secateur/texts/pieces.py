"""Documents in pieces of bounded size, so that no file has to fit into memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secateur.texts.files import open_text

PIECE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A whole document, or a part of a long one."""

    text: str
    begins: bool
    """Whether a document begins with it."""
    ends: bool
    """Whether the document ends with it; its text may then be empty."""


def file_pieces(path: Path, separator: str | None) -> Iterator[Piece]:
    """The documents of a text file, of which long ones come in pieces of about 2^20 characters.

    Pieces end at line ends where there are any. White space around a document is dropped, and so
    is a document of nothing else.

    Args:
        path: a text file, plain or gzipped.
        separator: a line of this text stands between two documents; None: the file is one.

    Raises:
        SecateurError: it is not UTF-8 text.
    """
    document = _OpenDocument()
    with open_text(path) as file:
        at_line_start = True
        while line := file.readline(PIECE_CHARACTERS):
            is_separator = at_line_start and separator is not None and line.strip() == separator
            at_line_start = line.endswith("\n")
            yield from document.end() if is_separator else document.add(line)
    yield from document.end()


def text_pieces(text: str) -> Iterator[Piece]:
    """A text as it is, in pieces of at most 2^20 characters; none where it is blank."""
    if not text.strip():
        return
    begin = 0
    while begin < len(text):
        end = begin + PIECE_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield Piece(text[begin:end], begins=begin == 0, ends=end >= len(text))
        begin = end


class _OpenDocument:
    """The lines of a document since its last piece."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._lines: list[str] = []
        self._length = 0
        self._has_begun = False

    def add(self, line: str) -> Iterator[Piece]:
        if not self._has_begun and not self._lines:
            line = line.lstrip()
        if not line:
            return
        self._lines.append(line)
        self._length += len(line)
        if self._length >= PIECE_CHARACTERS:
            yield self._cut()

    def end(self) -> Iterator[Piece]:
        text = "".join(self._lines).rstrip()
        if text or self._has_begun:
            yield Piece(text, begins=not self._has_begun, ends=True)
        self._forget()

    def _cut(self) -> Piece:
        joined = "".join(self._lines)
        # What is blank goes to the next piece: if the document ends there, it is dropped. But a
        # piece full of nothing else goes on its way, or it would grow without bound.
        text = joined.rstrip() or joined
        self._lines, self._length = [joined[len(text) :]], len(joined) - len(text)
        piece = Piece(text, begins=not self._has_begun, ends=False)
        self._has_begun = True
        return piece
