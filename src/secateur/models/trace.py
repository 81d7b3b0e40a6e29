"""Learn how a model uses its blocks, before they are called one at a time."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.measure import is_finite
from secateur.models.replay import (
    BlockCall,
    LastBlockReached,
    beside,
    capture_batch,
    hidden_of,
    run_with_stubs,
    split_hidden,
    tensors_in,
)

# Enough to see how blocks and linears are called.
_TRACED_TOKENS = 8

# Of a block whose arguments are not what it wants.
_FAILURES = (RuntimeError, LookupError, TypeError, AttributeError, AssertionError, SecateurError)


@dataclass(frozen=True)
class Trace:
    """How the model uses its blocks, learnt from one short real run."""

    output_forms: tuple[int | None, ...]
    """By block: None for a tensor, else the length of the returned tuple."""
    shared_inputs: dict[str, str]
    """Name of a linear -> name of the first linear that was given the very same tensor."""
    handed_on: frozenset[int | str] = frozenset()
    """Arguments in which the model gives blocks what an earlier one returned beside hidden states.
    `trace_blocks` has seen that they make nothing of it; `trace_without_weights` cannot."""
    wider: torch.dtype | None = None
    """Set where block 0 takes hidden states in a narrower dtype than it, and all after it, give
    (`residual_in_fp32` of Mamba). Given them in this one, it does the same."""


def trace_blocks(
    model: nn.Module, blocks: BlockList, linears: dict[str, nn.Module], input_ids: Tensor
) -> Trace:
    """Run the model once and watch its blocks and linears.

    Args:
        model: a causal language model.
        blocks: its blocks.
        linears: modules by name, whose shared inputs are wanted.
        input_ids: int64 [1, length], of which the first eight tokens are run.

    Raises:
        SecateurError: blocks are not called once each in order, or the model changes hidden
            states between two blocks, or hands on something else that a block needs, so that it
            cannot be worked on alone.
    """
    watcher = _Watcher(blocks)
    hooks = [
        hook
        for index, block in enumerate(blocks.modules)
        for hook in (
            block.register_forward_pre_hook(watcher.entering(index), with_kwargs=True),
            block.register_forward_hook(watcher.leaving, with_kwargs=True),
        )
    ] + [
        module.register_forward_pre_hook(watcher.inputs.multiplying(name), with_kwargs=True)
        for name, module in linears.items()
    ]
    try:
        with torch.no_grad():
            model(input_ids=beside(model, input_ids[:, :_TRACED_TOKENS]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    watcher.check_order()
    wider = watcher.first.wider(blocks.modules[0])
    handed_on = frozenset(watcher.handed_on)
    trace = Trace(tuple(watcher.forms), watcher.inputs.shared, handed_on, wider)
    if trace.handed_on:
        batch = capture_batch(model, blocks, trace.output_forms, input_ids[:, :_TRACED_TOKENS])
        for index, call in enumerate(batch.calls):
            check_alone(blocks, index, call, trace.handed_on, watcher.entered[index])
    return trace


def trace_without_weights(model: nn.Module, blocks: BlockList, input_ids: Tensor) -> Trace:
    """What `trace_blocks` learns, where only block 0 and what belongs to no block have weights.

    All blocks are taken to return what block 0 returns, and `shared_inputs` is empty: see
    `shared_inputs_of`.

    Args:
        model: a causal language model.
        blocks: its blocks, of which the first one has its weights.
        input_ids: int64 [1, length], of which the first eight tokens are run.

    Raises:
        SecateurError: as `trace_blocks`.
    """
    input_ids = input_ids[:, :_TRACED_TOKENS]
    first = _run_first(model, blocks, input_ids)
    forms, others = (first.form,) * len(blocks), first.others
    handed_on: set[int | str] = set()
    order: list[int] = []
    given: list[tuple[Tensor, int]] = []

    def note(index: int, hidden: Tensor, call: BlockCall) -> None:
        if given and not (_same_tensor(hidden, given[0][0]) and hidden._version == given[0][1]):
            raise SecateurError(_changed_between(blocks, index))
        handed_on.update(call.places_of(tensors_in(others)))
        order.append(index)
        given[:] = [(hidden, hidden._version)]

    # To the end: blocks that are called once more after the last one are to be seen.
    run_with_stubs(model, blocks, forms, input_ids, note, to_the_end=True, others=others)
    _check_order(blocks, order)
    return Trace(forms, {}, frozenset(handed_on), first.wider(blocks.modules[0]))


@dataclass(frozen=True)
class _FirstRun:
    """Block 0 as the model ran it."""

    hidden: Tensor
    call: BlockCall
    output: Any

    @property
    def form(self) -> int | None:
        """See `Trace.output_forms`."""
        return len(self.output) if isinstance(self.output, tuple) else None

    @property
    def others(self) -> tuple[Any, ...]:
        """What it returned beside hidden states that has tensors."""
        if not isinstance(self.output, tuple):
            return ()
        return tuple(item if tensors_in(item) else None for item in self.output[1:])

    def wider(self, block: nn.Module) -> torch.dtype | None:
        """See `Trace`."""
        given = hidden_of(self.output)
        dtype = torch.promote_types(self.hidden.dtype, given.dtype)
        if dtype == self.hidden.dtype or dtype != given.dtype:
            return None
        try:
            with torch.no_grad():
                again = self.call(block, self.hidden.to(dtype))
        except _FAILURES:
            return None
        return dtype if torch.equal(again, given) else None


def _run_first(model: nn.Module, blocks: BlockList, input_ids: Tensor) -> _FirstRun:
    runs: list[_FirstRun] = []

    def leaving(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden_of(output)
        runs.append(_FirstRun(*split_hidden(args, kwargs), output))
        raise LastBlockReached

    hook = blocks.modules[0].register_forward_hook(leaving, with_kwargs=True)
    try:
        with torch.no_grad():
            model(input_ids=beside(model, input_ids), use_cache=False)
    except LastBlockReached:
        pass
    finally:
        hook.remove()
    if not runs:
        raise SecateurError(f"expected the model to call {blocks.block_name(0)}, but it did not")
    return runs[0]


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


def check_alone(
    blocks: BlockList,
    index: int,
    call: BlockCall,
    handed_on: Collection[int | str],
    hidden: Tensor,
) -> None:
    """A block must do without what an earlier one returned beside hidden states.

    Args:
        blocks: of which this one has its weights.
        index: its number.
        call: how the model calls it, with nothing in the places of `handed_on`.
        handed_on: see `Trace`.
        hidden: [batch, length, width], what enters it.

    Raises:
        SecateurError: it makes something of it.
    """
    if index and handed_on and _needs_more(blocks.modules[index], call, handed_on, hidden):
        raise SecateurError(
            f"{blocks.block_name(index)} needs more than hidden states of the block before it; "
            "blocks cannot be worked on one by one"
        )


def _needs_more(
    block: nn.Module, call: BlockCall, handed_on: Collection[int | str], hidden: Tensor
) -> bool:
    # What is computed with it is no number either, or fails, as its shape is another one.
    no_number = torch.full((1,), nan, dtype=hidden.dtype, device=hidden.device)
    try:
        with torch.no_grad():
            # Blocks may add to what enters them in place.
            without = call(block, hidden.clone())
            given = call.with_value(handed_on, no_number)(block, hidden.clone())
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except _FAILURES:
        return True
    # Of a damaged model nothing can be told; those who measure it refuse it.
    return is_finite(without) and not torch.equal(without, given)


class _Watcher:
    def __init__(self, blocks: BlockList) -> None:
        self.blocks = blocks
        self.order: list[int] = []
        self.forms: list[int | None] = []
        self.inputs = _InputWatcher()
        self._last_output: Tensor | None = None
        self._last_version = 0
        self.entered: list[Tensor] = []
        self.handed_on: set[int | str] = set()
        self._beside_output: list[Tensor] = []
        self.first: _FirstRun

    def entering(self, index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, call = split_hidden(args, kwargs)
            self.handed_on |= call.places_of(self._beside_output)
            self.entered.append(hidden)
            if self._last_output is not None and not (
                _same_tensor(hidden, self._last_output)
                and self._last_output._version == self._last_version
            ):
                raise SecateurError(_changed_between(self.blocks, index))
            self.order.append(index)
            self.inputs.clear()

        return hook

    def leaving(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self.forms:
            self.first = _FirstRun(*split_hidden(args, kwargs), output)
        self.forms.append(len(output) if isinstance(output, tuple) else None)
        self._last_output = hidden_of(output)
        self._last_version = self._last_output._version
        if isinstance(output, tuple):
            self._beside_output += tensors_in(output[1:])

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


def _same_tensor(left: Tensor, right: Tensor) -> bool:
    return left is right or (left.shape == right.shape and left.data_ptr() == right.data_ptr())
