"""Where samples lie in the text that they were drawn from, and which of them share its tokens."""

from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""Of a sample: its first token, and the one behind its last, counted through the text."""


def apart(chosen: Iterable[int], others: Iterable[int], spans: Sequence[Span] | None) -> list[int]:
    """Those of `chosen` that share no token of the text with any of `others`, in their order.

    Args:
        chosen: numbers of samples.
        others: of other samples.
        spans: by sample; None where they are not known, so that none is taken to share any.
    """
    if spans is None:
        return list(chosen)
    taken = [spans[other] for other in others]
    return [
        sample
        for sample in chosen
        if all(spans[sample][1] <= first or end <= spans[sample][0] for first, end in taken)
    ]
