import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.texts import pieces
from secateur.texts.pieces import Piece, file_pieces, text_pieces

SEPARATOR = "<|endoftext|>"
SMALL = 8


def documents(made: list[Piece]) -> list[str]:
    """What the pieces say, and that each document is begun once and ended once."""
    joined: list[str] = []
    is_open = False
    for piece in made:
        assert piece.begins != is_open
        joined = [*joined, ""] if piece.begins else joined
        joined[-1] += piece.text
        is_open = not piece.ends
    assert not is_open
    return joined


def expected_documents(text: str) -> list[str]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip() == SEPARATOR:
            found.append([])
        else:
            found[-1].append(line)
    return [document for lines in found if (document := "\n".join(lines).strip())]


LINES = st.sampled_from(
    ["", " ", "\t", "a", "ab cd", "0123456789abcdef", f" {SEPARATOR} ", SEPARATOR, f"{SEPARATOR}."]
)


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lines=st.lists(LINES, max_size=12))
def test_documents_stand_between_separator_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    expected = expected_documents("\n".join(lines))
    assert documents(list(file_pieces(path, SEPARATOR))) == expected
    # A piece of a line is no separator line, and pieces change nothing.
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "PIECE_CHARACTERS", SMALL)
        made = list(file_pieces(path, "ab cd"))
        assert all(len(piece.text) < 3 * SMALL for piece in made)
        whole = "\n".join(lines)
        assert "".join("".join(documents(made)).split()) == "".join(
            "".join(line for line in whole.split("\n") if line.strip() != "ab cd").split()
        )


def test_without_separator_a_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(f"\n one\n{SEPARATOR}\ntwo\r\n\n".encode()))
    assert list(file_pieces(path, None)) == [Piece(f"one\n{SEPARATOR}\ntwo", True, True)]


def test_long_document_is_cut_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", SMALL)
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n\n\n\nfour\n\n", encoding="utf-8")
    assert list(file_pieces(path, SEPARATOR)) == [
        Piece("one\ntwo", True, False),
        Piece("\nthree", False, False),
        Piece("\n\n\n\nfour", False, False),
        Piece("", False, True),
    ]


def test_text_in_pieces_is_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(text_pieces(" \n ")) == []
    assert list(text_pieces(" as it is \n")) == [Piece(" as it is \n", True, True)]
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", SMALL)
    made = list(text_pieces("one\ntwo\nthree0123456789"))
    assert [piece.text for piece in made] == ["one\ntwo\n", "three012", "3456789"]
    assert documents(made) == ["one\ntwo\nthree0123456789"]


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(SecateurError, match=r"a\.txt is not UTF-8 text: "):
        list(file_pieces(path, SEPARATOR))
