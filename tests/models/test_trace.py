"""What tracing says of blocks, on blocks made for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.models.replay import BlockCall
from secateur.models.trace import needs_more


class _TakesMore(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use

    def forward(self, hidden: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (hidden if more is None else self.use(hidden, more)), more


def _added_in_place(hidden: Tensor, more: Tensor) -> Tensor:
    result = hidden.clone()
    result += more
    return result


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda hidden, _: hidden, False),
        (_added_in_place, True),
        (lambda hidden, more: hidden @ more.expand(4, 4), True),
        (lambda hidden, more: hidden[more.long()], True),
        (lambda hidden, more: hidden + more.view(1, 3, 4), True),
        (lambda hidden, more: more, True),
    ],
    ids=["ignored", "added", "multiplied", "index", "another shape", "returned"],
)
def test_what_a_block_makes_of_what_is_handed_on(
    use: Callable[[Tensor, Tensor], Tensor], expected: bool
) -> None:
    block, hidden = _TakesMore(use), torch.ones(1, 3, 4)
    call = BlockCall((), {"more": None}, None)
    assert needs_more(block, call, {"more"}, hidden) is expected
    assert not needs_more(block, call, frozenset(), hidden)


def test_a_block_that_fails_with_nothing_handed_on_needs_it() -> None:
    class Reads(nn.Module):
        def forward(self, hidden: Tensor, more: Any) -> Tensor:
            return hidden * more.sum()

    assert needs_more(Reads(), BlockCall((), {"more": None}, None), {"more"}, torch.ones(1, 3, 4))
