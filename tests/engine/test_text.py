import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.engine.text import Decoder, IncrementalText, StopStrings


class Bytes:
    """A token is a byte; like many a tokenizer it drops a space at the start of a text."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        kept = bytes(token for token in token_ids if token < 256)
        return kept.decode("utf-8", errors="replace").removeprefix(" ")


class BytesOrNothing:
    """Shows no character of a text of which one is not whole, as SentencePiece's decoders do."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        try:
            return bytes(token_ids).decode("utf-8")
        except UnicodeDecodeError:
            return "�" * len(token_ids)


def pieces_of(
    token_ids: list[int], prompt: tuple[int, ...] = (65,), decoder: Decoder | None = None
) -> list[str]:
    text = IncrementalText(decoder or Bytes(), prompt)
    return [*(text.add(token) for token in token_ids), text.flush()]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_are_whole_characters_and_make_up_the_text(text: str) -> None:
    pieces = pieces_of(list(text.encode()))
    assert "".join(pieces) == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


_WHOLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="�"), max_size=12)


@given(_WHOLE, _WHOLE.filter(bool))
def test_characters_do_not_spoil_those_next_to_them(text: str, prompt: str) -> None:
    pieces = pieces_of(list(text.encode()), tuple(prompt.encode()), BytesOrNothing())
    assert "".join(pieces) == text


@pytest.mark.parametrize("begun", [1, 2, 3])
def test_a_character_that_the_prompt_began_is_not_spoilt_either(begun: int) -> None:
    token_ids = list("🌻🌹🌷".encode())
    prompt, rest = tuple(token_ids[: 4 + begun]), token_ids[4 + begun :]
    assert "".join(pieces_of(rest, prompt, BytesOrNothing())) == "🌹🌷"


def test_a_character_that_breaks_off_leaves_those_before_it_whole() -> None:
    token_ids = list("🌻🌹".encode())
    assert "".join(pieces_of(token_ids[:6], (65,), BytesOrNothing())) == "🌻��"


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_come_out_as_the_decoder_writes_them(data: bytes) -> None:
    assert "".join(pieces_of(list(data))) == data.decode("utf-8", errors="replace")


def test_a_character_comes_with_its_last_byte() -> None:
    assert pieces_of(list("aé€😀".encode())) == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]


def test_bytes_that_are_no_text_do_not_wait_for_the_end() -> None:
    pieces = pieces_of([0xFF] * 12)
    assert pieces[4] != ""
    assert "".join(pieces) == "�" * 12


def test_a_space_between_prompt_and_continuation_is_kept() -> None:
    assert "".join(pieces_of(list(b" b"), prompt=(97,))) == " b"


def test_special_tokens_have_no_text() -> None:
    assert pieces_of([97, 256, 98]) == ["a", "", "b", ""]


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_where_the_first_stop_string_begins(pieces: list[str], stop: list[str]) -> None:
    stops = StopStrings(tuple(stop))
    out = seen = ""
    for piece in pieces:
        out += stops.add(piece)
        seen += piece
        if stops.found:
            break
    out += stops.flush()
    # What one sees who looks at all the text after every piece.
    found = [match.start() for one in stop if (match := re.search(re.escape(one), seen))]
    assert stops.found == bool(found)
    assert out == (seen[: min(found)] if found else seen)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(("END",))
    assert [stops.add(piece) for piece in ("x", "E", "N", "x", "yE", "ND z")] == [
        "x",
        "",
        "",
        "ENx",
        "y",
        "",
    ]
    assert stops.found
    assert stops.flush() == ""


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_without_a_match_all_text_comes_out(stop: tuple[str, ...]) -> None:
    stops = StopStrings(stop)
    assert stops.add("abz") + stops.flush() == "abz"
    assert not stops.found


@pytest.mark.parametrize("begun", [1, 2, 3])
def test_a_character_that_the_prompt_began_comes_whole(begun: int) -> None:
    token_ids = list("a🌹b".encode())
    prompt, rest = tuple(token_ids[: 1 + begun]), token_ids[1 + begun :]
    assert "".join(pieces_of(rest, prompt)) == "🌹b"


@pytest.mark.parametrize("prompt", ["a�", "a🌹"])
def test_a_whole_character_of_the_prompt_does_not_come_again(prompt: str) -> None:
    assert "".join(pieces_of(list(b"bc"), tuple(prompt.encode()))) == "bc"


def test_what_stays_broken_belongs_to_the_prompt() -> None:
    assert "".join(pieces_of(list(b"bc"), tuple("a🌹".encode()[:3]))) == "bc"
