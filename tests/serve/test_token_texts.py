"""Tokens as text where a tokenizer treats the start of a text apart."""

from secateur.engine import ScoredToken
from secateur.serve.token_texts import TokenPlaces, TokenTexts


class Words:
    """Every word brings its space, which is dropped at the start of a text; 0 is special."""

    words = ("<s>", " a", " cat", ",", " sat")
    all_special_ids = (0,)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.words.index(f" {text}")]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        kept = [token for token in token_ids if token or not skip_special_tokens]
        return "".join(self.words[token] for token in kept).removeprefix(" ")


def places(before: list[int], token_ids: list[int]) -> list[tuple[str, int]]:
    scores = [ScoredToken(token, -1.0) for token in token_ids]
    told = TokenPlaces(TokenTexts(Words()), before).scored(scores)
    return [(one.token, one.offset) for one in told]


def test_tokens_behind_others_keep_their_space() -> None:
    assert places([0, 2], [4, 3, 1]) == [(" sat", 0), (",", 4), (" a", 5)]


def test_tokens_that_begin_a_text_are_what_it_begins_with() -> None:
    assert places([0], [2, 4]) == [("cat", 0), (" sat", 3)]
    assert places([], [0, 2, 4]) == [("<s>", 0), ("cat", 0), (" sat", 3)]


def test_the_likeliest_are_told_as_they_would_stand_there() -> None:
    score = ScoredToken(2, -1.0, ((4, -0.5), (2, -1.0)))
    (told,) = TokenPlaces(TokenTexts(Words()), [2]).scored([score])
    assert told.top == ((" sat", -0.5), (" cat", -1.0))
