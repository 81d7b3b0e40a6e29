"""What tracing says of blocks, on blocks made for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.replay import BlockCall
from secateur.models.trace import check_alone, trace_blocks, trace_without_weights


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


def _refusal(block: nn.Module) -> str | None:
    """As the second of two blocks; the first one is never asked."""
    blocks = BlockList("layers", nn.ModuleList([block, block]))
    call, hidden = BlockCall((), {"more": None}, None), torch.ones(1, 3, 4)
    check_alone(blocks, 0, call, {"more"}, hidden)
    check_alone(blocks, 1, call, frozenset(), hidden)
    try:
        check_alone(blocks, 1, call, {"more"}, hidden)
    except SecateurError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "use",
    [
        _added_in_place,
        lambda hidden, more: hidden @ more.expand(4, 4),
        lambda hidden, more: hidden[more.long()],
        lambda hidden, more: hidden + more.view(1, 3, 4),
        lambda hidden, more: more,
    ],
    ids=["added", "multiplied", "index", "another shape", "returned"],
)
def test_a_block_that_makes_something_of_what_is_handed_on_is_refused(
    use: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert _refusal(_TakesMore(use)) == (
        "layers.1 needs more than hidden states of the block before it; "
        "blocks cannot be worked on one by one"
    )


def test_a_block_that_only_hands_it_on_is_not() -> None:
    assert _refusal(_TakesMore(lambda hidden, _: hidden)) is None


@pytest.mark.parametrize("error", [ValueError, KeyError, AssertionError])
def test_a_block_that_fails_with_nothing_handed_on_needs_it(error: type[Exception]) -> None:
    class Reads(nn.Module):
        def forward(self, hidden: Tensor, more: Any) -> Tensor:
            if more is None:
                raise error("nothing was handed on")
            return hidden

    assert _refusal(Reads()) is not None


def test_what_is_handed_on_is_found_in_tuples() -> None:
    one, two = torch.ones(1), torch.ones(2)
    call = BlockCall((two, (one, two)), {"pair": {"first": one}, "other": None}, None)
    assert call.places_of([one]) == {1, "pair"}


def test_a_value_error_of_a_block_is_told_as_it_is() -> None:
    class Refuses(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            raise ValueError("expected an even length")

    with pytest.raises(SecateurError, match="Refuses could not be run by itself: expected an even"):
        BlockCall((), {}, None)(Refuses(), torch.ones(1, 3, 4))


class _Ignores(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, hidden: Tensor, more: Tensor | None = None) -> Tensor:
        return self.change(hidden)


def test_a_block_that_adds_to_its_inputs_in_place_is_asked_with_the_same_twice() -> None:
    assert _refusal(_Ignores(lambda hidden: hidden.add_(1))) is None


def test_a_block_that_gives_no_numbers_in_any_case_is_left_to_those_who_measure_it() -> None:
    assert _refusal(_Ignores(lambda hidden: hidden * torch.nan)) is None


class _HandsPairsOn(nn.Module):
    """Each block returns a pair beside hidden states, which the next one is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.h = nn.ModuleList([_AddsPair(), _AddsPair()])

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        hidden, pair = self.embedding(input_ids), None
        for block in self.h:
            hidden, pair = block(hidden, pair=pair)
        return hidden


class _AddsPair(nn.Module):
    def forward(
        self, hidden: Tensor, pair: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        added = hidden if pair is None else hidden + pair[0] * pair[1]
        return added, (hidden.cos(), hidden.sin())


def test_what_is_handed_on_in_a_tuple_is_noticed_in_memory_and_streamed() -> None:
    model = _HandsPairsOn()
    blocks, ids = BlockList("h", model.h), torch.arange(6).view(1, -1)
    with pytest.raises(SecateurError, match=r"h\.1 needs more than hidden states"):
        trace_blocks(model, blocks, {}, ids)
    assert trace_without_weights(model, blocks, ids).handed_on == {"pair"}
