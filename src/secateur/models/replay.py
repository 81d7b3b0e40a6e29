"""Call blocks one at a time exactly as the model calls them.

The model runs once a batch with every block replaced by a stub that notes its arguments and
passes the hidden states on: embeddings, masks, position embeddings and caches are made by the
model's own code, whatever its version, and no block is computed.
"""

from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.carried import Carried, Written, joined_carried


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block's call without its hidden states."""

    args: tuple[Any, ...]
    """Positional arguments after the hidden states."""
    kwargs: dict[str, Any]
    hidden_keyword: str | None
    """Set where the model passes the hidden states by this keyword."""
    rows_per_sample: tuple[int, ...] = ()
    """Of every tensor among the arguments, in order: how many of its first dimension belong to one
    sample (as many as heads, for some); 0 where all of it holds for all samples."""
    carried: Mapping[str, Carried] = field(default_factory=dict)
    """By keyword: mappings in which blocks leave something for later ones."""

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's hidden states [batch, length, width] for these inputs.

        Raises:
            SecateurError: the block refuses them.
        """
        with ExitStack() as stack:
            lent: dict[str, Any] = {
                name: stack.enter_context(carried.lent(hidden))
                for name, carried in self.carried.items()
            }
            if self.hidden_keyword is not None:
                lent[self.hidden_keyword] = hidden
            first = () if self.hidden_keyword is not None else (hidden,)
            try:
                output = block(*first, *self.args, **self.kwargs, **lent)
            except SecateurError:
                raise
            except ValueError as error:
                raise SecateurError(
                    f"{type(block).__name__} could not be run by itself: {error}"
                ) from error
        return hidden_of(output)

    def rows(self, first: int, end: int) -> "BlockCall":
        """The same call for samples `first` to `end` of its batch."""
        counts = iter(self.rows_per_sample)

        def cut(tensor: Tensor) -> Tensor:
            count = next(counts)
            return tensor[first * count : end * count] if count else tensor

        own = {name: carried.rows(first, end) for name, carried in self.carried.items()}
        return replace(self.map(cut), carried=own)

    def places_of(self, tensors: Sequence[Tensor]) -> set[int | str]:
        """Where one of these very tensors stands: among positional arguments, or by keyword."""
        own: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        wanted = {id(tensor) for tensor in tensors}
        return {p for p, value in own if any(id(t) in wanted for t in tensors_in(value))}

    def with_value(self, places: Collection[int | str], value: Any) -> "BlockCall":
        """The same call with one value in several places; its tensors are not counted anew."""
        args = [value if place in places else own for place, own in enumerate(self.args)]
        kwargs = {name: value if name in places else own for name, own in self.kwargs.items()}
        return replace(self, args=tuple(args), kwargs=kwargs)

    def to(self, device: torch.device) -> "BlockCall":
        """The same call with its tensors on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "BlockCall":
        """The same call with every tensor among its arguments changed, in order."""
        return replace(self, args=_mapped(self.args, change), kwargs=_mapped(self.kwargs, change))

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, in order."""
        return tensors_in((self.args, self.kwargs))


def joined(calls: Sequence[BlockCall]) -> BlockCall:
    """Calls for samples of equal length as one call for all of them, in order.

    Tensors that are the same in all take no more memory, unless blocks count several rows of them
    for each sample.
    """
    first = calls[0]
    parts = iter(list(zip(*(call.tensors() for call in calls), strict=True)))
    counts = iter(first.rows_per_sample)

    def together(tensor: Tensor) -> Tensor:
        own, count = next(parts), next(counts)
        if count > 1 or not all(_is_same(other, tensor) for other in own[1:]):
            return torch.cat(own)
        # Blocks may lay what has a row for each sample beside something else that has.
        is_one_row = count == 1 and len(tensor) == 1
        return tensor.expand(len(own), *tensor.shape[1:]) if is_one_row else tensor

    if len(calls) == 1:
        return first
    carried = {
        name: joined_carried([call.carried[name] for call in calls]) for name in first.carried
    }
    return replace(first.map(together), carried=carried)


def _is_same(left: Tensor, right: Tensor) -> bool:
    if left is right:
        return True
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    same_place = left.data_ptr() == right.data_ptr() and left.stride() == right.stride()
    return same_place or torch.equal(left, right)


@dataclass(frozen=True)
class CapturedBatch:
    """The hidden states [batch, length, width] that enter block 0, and every block's call."""

    hidden: Tensor
    calls: tuple[BlockCall, ...]


class LastBlockReached(Exception):
    """Ends a run at a block, so that what comes after it is not computed."""


def capture_batch(
    model: nn.Module,
    blocks: BlockList,
    output_forms: Sequence[int | None],
    input_ids: Tensor,
    previous: CapturedBatch | None = None,
) -> CapturedBatch:
    """Run the model on one batch with stubs for blocks.

    Args:
        model: a causal language model.
        blocks: its blocks.
        output_forms: by block, None where it returns a tensor, else the length of the tuple whose
            first item is the hidden states; see `trace_blocks`.
        input_ids: int64 [batch, length], no padding.
        previous: arguments equal to this batch's are shared with it instead of stored again.

    Raises:
        SecateurError: what enters block 0 does not have the tokens along its first dimensions.
    """
    hidden, calls = _noted(model, blocks, output_forms, input_ids)
    if hidden.ndim < 3 or hidden.shape[:2] != input_ids.shape:
        raise SecateurError(
            f"expected hidden states of {' x '.join(map(str, input_ids.shape))} tokens to enter "
            f"{blocks.block_name(0)}, samples first, got {list(hidden.shape)}; blocks that take "
            "more than their tokens, or streams of them in front, cannot be worked on one by one"
        )
    if previous is not None and previous.hidden.shape[1] == hidden.shape[1]:
        counts = [call.rows_per_sample for call in previous.calls]
    else:
        # What grows with the number of samples belongs to them: shapes alone do not tell, as a
        # first dimension can be heads or tokens, and by chance as many as samples.
        one, two = (
            _noted(model, blocks, output_forms, input_ids[:1].expand(size, -1))[1]
            for size in (1, 2)
        )
        counts = [_rows_per_sample(a, b) for a, b in zip(one, two, strict=True)]
    calls = [
        replace(call, rows_per_sample=own)
        for call, own in zip(_carrying(calls, hidden), counts, strict=True)
    ]
    if previous is not None:
        equal: dict[tuple[int, int], bool] = {}
        pairs = zip(calls, previous.calls, strict=True)
        calls = [_share(call, old, equal) for call, old in pairs]
    return CapturedBatch(hidden, tuple(calls))


def _carrying(calls: Sequence[BlockCall], hidden: Tensor) -> list[BlockCall]:
    """The calls with what blocks share kept by sample: in all of them the same.

    A plain dict is none of it: models pass masks and positions of several kinds as one.
    """
    found: dict[int, Carried] = {}
    changed = []
    for call in calls:
        shared = {name: v for name, v in call.kwargs.items() if isinstance(v, UserDict)}
        for mapping in shared.values():
            samples: tuple[Written, ...] = tuple({} for _ in hidden)
            found.setdefault(id(mapping), Carried(type(mapping), hidden.dtype, samples))
        rest = {name: value for name, value in call.kwargs.items() if name not in shared}
        carried = {name: found[id(mapping)] for name, mapping in shared.items()}
        changed.append(replace(call, kwargs=rest, carried=carried))
    return changed


def _noted(
    model: nn.Module, blocks: BlockList, output_forms: Sequence[int | None], input_ids: Tensor
) -> tuple[Tensor, list[BlockCall]]:
    """What enters block 0, and every block's call."""
    first_hidden: list[Tensor] = []
    calls: list[BlockCall] = []

    def note(index: int, hidden: Tensor, call: BlockCall) -> None:
        if index == 0:
            first_hidden.append(hidden)
        calls.append(call)

    run_with_stubs(model, blocks, output_forms, input_ids, note)
    return first_hidden[0], calls


def _rows_per_sample(one: BlockCall, two: BlockCall) -> tuple[int, ...]:
    """From a block's calls for a sample alone and for the same sample twice."""
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return tuple(len(a) if a.ndim and len(b) == 2 * len(a) else 0 for a, b in pairs)


def run_with_stubs(
    model: nn.Module,
    blocks: BlockList,
    output_forms: Sequence[int | None],
    input_ids: Tensor,
    note: Callable[[int, Tensor, BlockCall], None],
    to_the_end: bool = False,
    others: Sequence[Any] = (),
) -> None:
    """Run the model with blocks that note their arguments and hand the hidden states on.

    Final norm and head are computed only where it goes `to_the_end`. Beside hidden states, blocks
    that return tuples give what stands in `others`, or nothing.
    """

    def stub(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = split_hidden(args, kwargs)
            note(index, hidden, call)
            if index == len(blocks) - 1 and not to_the_end:
                raise LastBlockReached
            length = output_forms[index]
            if length is None:
                return hidden
            return (hidden, *others) if others else (hidden,) + (None,) * (length - 1)

        return forward

    with _replaced_forwards(blocks, stub), torch.no_grad():
        try:
            model(input_ids=beside(model, input_ids), use_cache=False)
        except LastBlockReached:
            pass


def beside(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Token ids where the model, or the first of it, is."""
    return input_ids.to(next(model.parameters(), input_ids).device)


def hidden_of(output: Any) -> Tensor:
    """The hidden states that a block returned: alone, or first in a tuple.

    Raises:
        SecateurError: it returned something else.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise SecateurError(
            "expected a block to return its hidden states, alone or first in a tuple; "
            f"it returned {type(output).__name__}"
        )
    return hidden


def split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """The hidden states among a block\'s arguments, and all the others.

    Raises:
        SecateurError: they are neither first nor called `hidden_states`.
    """
    if args:
        return args[0], BlockCall(tuple(args[1:]), dict(kwargs), None)
    rest = dict(kwargs)
    hidden = rest.pop("hidden_states", None)
    if not isinstance(hidden, Tensor):
        raise SecateurError(
            "expected a block to be given its hidden states first or as `hidden_states`; "
            f"it was called with keywords {sorted(kwargs)}"
        )
    return hidden, BlockCall((), rest, "hidden_states")


@contextmanager
def _replaced_forwards(
    blocks: BlockList, stub: Callable[[int], Callable[..., Any]]
) -> Iterator[None]:
    saved = [vars(block).get("forward") for block in blocks.modules]
    for index, block in enumerate(blocks.modules):
        block.forward = stub(index)
    try:
        yield
    finally:
        for block, forward in zip(blocks.modules, saved, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _share(new: Any, old: Any, equal: dict[tuple[int, int], bool]) -> Any:
    """`old` where it equals `new`, item by item, so that equal tensors are stored once.

    `equal`: by ids of both, what was found before: most blocks are given the very same tensors.
    """
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        pair = id(new), id(old)
        if pair not in equal:
            equal[pair] = new is old or (
                new.shape == old.shape and new.dtype == old.dtype and torch.equal(new, old)
            )
        return old if equal[pair] else new
    if isinstance(new, BlockCall) and isinstance(old, BlockCall):
        args, kwargs = _share(new.args, old.args, equal), _share(new.kwargs, old.kwargs, equal)
        return replace(new, args=args, kwargs=kwargs)
    if isinstance(new, tuple) and isinstance(old, tuple) and len(new) == len(old):
        return tuple(_share(a, b, equal) for a, b in zip(new, old, strict=True))
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: _share(value, old.get(key), equal) for key, value in new.items()}
    return new


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples and dicts, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, note)
    return found
