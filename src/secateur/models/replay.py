"""Call blocks one at a time exactly as the model calls them.

The model runs once a batch with every block replaced by a stub that notes its arguments and
passes the hidden states on: embeddings, masks, position embeddings and caches are made by the
model's own code, whatever its version, and no block is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block's call without its hidden states."""

    args: tuple[Any, ...]
    """Positional arguments after the hidden states."""
    kwargs: dict[str, Any]
    hidden_keyword: str | None
    """Set where the model passes the hidden states by this keyword."""

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's hidden states [batch, length, width] for these inputs."""
        if self.hidden_keyword is None:
            output = block(hidden, *self.args, **self.kwargs)
        else:
            output = block(*self.args, **{self.hidden_keyword: hidden}, **self.kwargs)
        return _hidden_of(output)

    def rows(self, first: int, end: int, size: int) -> "BlockCall":
        """The same call for samples `first` to `end` of a batch of `size`.

        Tensors with more than one dimension whose first is the batch's size are taken apart with
        it; everything else holds for all samples.
        """
        return replace(
            self,
            args=_rows(self.args, first, end, size),
            kwargs=_rows(self.kwargs, first, end, size),
        )

    def to(self, device: torch.device) -> "BlockCall":
        """The same call with its tensors on `device`."""
        return replace(
            self, args=_to_device(self.args, device), kwargs=_to_device(self.kwargs, device)
        )


@dataclass(frozen=True)
class CapturedBatch:
    """The hidden states [batch, length, width] that enter block 0, and every block's call."""

    hidden: Tensor
    calls: tuple[BlockCall, ...]


class _LastBlockReached(Exception):
    """Raised by the last stub, so that final norm and head are not computed."""


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
    """
    first_hidden: list[Tensor] = []
    calls: list[BlockCall] = []

    def note(index: int, hidden: Tensor, call: BlockCall) -> None:
        if index == 0:
            first_hidden.append(hidden)
        calls.append(call)

    _run_with_stubs(model, blocks, output_forms, input_ids, note)
    if previous is not None:
        calls = [_share(call, old) for call, old in zip(calls, previous.calls, strict=True)]
    return CapturedBatch(first_hidden[0], tuple(calls))


def _run_with_stubs(
    model: nn.Module,
    blocks: BlockList,
    output_forms: Sequence[int | None],
    input_ids: Tensor,
    note: Callable[[int, Tensor, BlockCall], None],
    to_the_end: bool = False,
) -> None:
    """Run the model with blocks that note their arguments and hand the hidden states on.

    Final norm and head are computed only where it goes `to_the_end`.
    """

    def stub(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = _split_hidden(args, kwargs)
            note(index, hidden, call)
            if index == len(blocks) - 1 and not to_the_end:
                raise _LastBlockReached
            length = output_forms[index]
            return hidden if length is None else (hidden,) + (None,) * (length - 1)

        return forward

    with _replaced_forwards(blocks, stub), torch.no_grad():
        try:
            model(input_ids=_beside(model, input_ids), use_cache=False)
        except _LastBlockReached:
            pass


@dataclass(frozen=True)
class Trace:
    """How the model uses its blocks, learnt from one short real run."""

    output_forms: tuple[int | None, ...]
    """By block: None for a tensor, else the length of the returned tuple."""
    shared_inputs: dict[str, str]
    """Name of a linear -> name of the first linear that was given the very same tensor."""


def trace_blocks(
    model: nn.Module, blocks: BlockList, linears: dict[str, nn.Module], input_ids: Tensor
) -> Trace:
    """Run the model once and watch its blocks and linears.

    Args:
        model: a causal language model.
        blocks: its blocks.
        linears: modules by name, whose shared inputs are wanted.
        input_ids: int64 [1, length], a few tokens.

    Raises:
        SecateurError: blocks are not called once each in order, or the model changes hidden
            states between two blocks, so that a block cannot be worked on alone.
    """
    watcher = _Watcher(blocks)
    hooks = [
        hook
        for index, block in enumerate(blocks.modules)
        for hook in (
            block.register_forward_pre_hook(watcher.entering(index), with_kwargs=True),
            block.register_forward_hook(watcher.leaving),
        )
    ] + [
        module.register_forward_pre_hook(watcher.inputs.multiplying(name), with_kwargs=True)
        for name, module in linears.items()
    ]
    try:
        with torch.no_grad():
            model(input_ids=_beside(model, input_ids), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    watcher.check_order()
    return Trace(tuple(watcher.forms), watcher.inputs.shared)


def trace_without_weights(model: nn.Module, blocks: BlockList, input_ids: Tensor) -> Trace:
    """What `trace_blocks` learns, where only block 0 and what belongs to no block have weights.

    All blocks are taken to return what block 0 returns, and `shared_inputs` is empty: see
    `shared_inputs_of`.

    Args:
        model: a causal language model.
        blocks: its blocks, of which the first one has its weights.
        input_ids: int64 [1, length], a few tokens.

    Raises:
        SecateurError: as `trace_blocks`.
    """
    forms = (_form_of_first(model, blocks, input_ids),) * len(blocks)
    order: list[int] = []
    given: list[tuple[Tensor, int]] = []

    def note(index: int, hidden: Tensor, _: BlockCall) -> None:
        if given and not (_same_tensor(hidden, given[0][0]) and hidden._version == given[0][1]):
            raise SecateurError(_changed_between(blocks, index))
        order.append(index)
        given[:] = [(hidden, hidden._version)]

    # To the end: blocks that are called once more after the last one are to be seen.
    _run_with_stubs(model, blocks, forms, input_ids, note, to_the_end=True)
    _check_order(blocks, order)
    return Trace(forms, {})


def _form_of_first(model: nn.Module, blocks: BlockList, input_ids: Tensor) -> int | None:
    forms: list[int | None] = []

    def leaving(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        _hidden_of(output)
        forms.append(len(output) if isinstance(output, tuple) else None)
        raise _LastBlockReached

    hook = blocks.modules[0].register_forward_hook(leaving)
    try:
        with torch.no_grad():
            model(input_ids=_beside(model, input_ids), use_cache=False)
    except _LastBlockReached:
        pass
    finally:
        hook.remove()
    if not forms:
        raise SecateurError(f"expected the model to call {blocks.block_name(0)}, but it did not")
    return forms[0]


def shared_inputs_of(
    block: nn.Module, call: BlockCall, hidden: Tensor, linears: dict[str, nn.Module]
) -> dict[str, str]:
    """The part of `Trace.shared_inputs` that one block shows.

    Args:
        block: with its weights.
        call: how the model calls it.
        hidden: [batch, length, width], what enters it.
        linears: of the block, by name.
    """
    watcher = _InputWatcher()
    hooks = [
        module.register_forward_pre_hook(watcher.multiplying(name), with_kwargs=True)
        for name, module in linears.items()
    ]
    try:
        with torch.no_grad():
            call(block, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return watcher.shared


class _Watcher:
    def __init__(self, blocks: BlockList) -> None:
        self.blocks = blocks
        self.order: list[int] = []
        self.forms: list[int | None] = []
        self.inputs = _InputWatcher()
        self._last_output: Tensor | None = None
        self._last_version = 0

    def entering(self, index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, _call = _split_hidden(args, kwargs)
            if self._last_output is not None and not (
                _same_tensor(hidden, self._last_output)
                and self._last_output._version == self._last_version
            ):
                raise SecateurError(_changed_between(self.blocks, index))
            self.order.append(index)
            self.inputs.clear()

        return hook

    def leaving(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self.forms.append(len(output) if isinstance(output, tuple) else None)
        self._last_output = _hidden_of(output)
        self._last_version = self._last_output._version

    def check_order(self) -> None:
        _check_order(self.blocks, self.order)


class _InputWatcher:
    """Finds linears that are given the very same tensor."""

    def __init__(self) -> None:
        self.shared: dict[str, str] = {}
        # Inputs are kept alive within a block: a freed tensor's id may be given out again.
        self._inputs: list[tuple[Tensor, int, str]] = []

    def clear(self) -> None:
        self._inputs.clear()

    def multiplying(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            for tensor, version, first_name in self._inputs:
                if tensor is inputs and inputs._version == version:
                    self.shared[name] = first_name
                    return
            self._inputs.append((inputs, inputs._version, name))

        return hook


def _check_order(blocks: BlockList, order: Sequence[int]) -> None:
    if list(order) != list(range(len(blocks))):
        raise SecateurError(
            f"expected each of the {len(blocks)} blocks at {blocks.name} to be "
            f"called once, in order; they were called in the order {list(order)}"
        )


def _changed_between(blocks: BlockList, index: int) -> str:
    return (
        f"the model changes hidden states between {blocks.block_name(index - 1)} "
        f"and {blocks.block_name(index)}; blocks cannot be worked on one by one"
    )


def _beside(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Token ids where the model, or the first of it, is."""
    return input_ids.to(next(model.parameters(), input_ids).device)


def _same_tensor(left: Tensor, right: Tensor) -> bool:
    return left is right or (left.shape == right.shape and left.data_ptr() == right.data_ptr())


def _hidden_of(output: Any) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise SecateurError(
            "expected a block to return its hidden states, alone or first in a tuple; "
            f"it returned {type(output).__name__}"
        )
    return hidden


def _split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
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


def _share(new: Any, old: Any) -> Any:
    """`old` where it equals `new`, item by item, so that equal tensors are stored once."""
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        same = new is old or (
            new.shape == old.shape and new.dtype == old.dtype and torch.equal(new, old)
        )
        return old if same else new
    if isinstance(new, BlockCall) and isinstance(old, BlockCall):
        return replace(new, args=_share(new.args, old.args), kwargs=_share(new.kwargs, old.kwargs))
    if isinstance(new, tuple) and isinstance(old, tuple) and len(new) == len(old):
        return tuple(_share(a, b) for a, b in zip(new, old, strict=True))
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: _share(value, old.get(key)) for key, value in new.items()}
    return new


def _rows(value: Any, first: int, end: int, size: int) -> Any:
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == size > 1:
        return value[first:end]
    if isinstance(value, tuple):
        return tuple(_rows(item, first, end, size) for item in value)
    if isinstance(value, dict):
        return {key: _rows(item, first, end, size) for key, item in value.items()}
    return value


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    return value
