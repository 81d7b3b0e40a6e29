import pytest

from secateur.spans import Span, apart


@pytest.mark.parametrize(
    ("other", "shares"),
    [((0, 4), False), ((0, 5), True), ((6, 7), True), ((7, 12), True), ((8, 12), False)],
)
def test_samples_share_tokens_where_they_overlap(other: Span, shares: bool) -> None:
    spans = [(4, 8), (20, 30), other]
    assert apart([1, 0], [2], spans) == ([1] if shares else [1, 0])
    assert apart([2], [0, 1], spans) == ([] if shares else [2])


def test_what_is_not_known_shares_nothing() -> None:
    assert apart([2, 0], [1, 0], None) == [2, 0]
