"""The two sub-layers of a block, attention and MLP, each of which adds to the residual stream.

They are found by what the block does, not by name: while a sub-layer returns zeros its block must
pass hidden states on as if it were not there. So no family needs code of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import INDEX_NAMES
from secateur.modules.removed_sublayer import RemovedSublayer

Part = Literal["attention", "mlp"]

# Of what a block adds. Halves side by side are summed in another order than the block does it.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Half:
    """A child of a block whose output is one half's part of the residual stream."""

    name: str
    width: int
    """Features of its output."""
    tuple_length: int | None
    """None where it returns a tensor, else the length of the tuple that begins with it."""


@dataclass(frozen=True)
class Sublayers:
    """What a block consists of."""

    attention: Half | None
    """None where it was removed before."""
    mlp: Half | None
    mlp_inputs: tuple[str, ...] = ()
    """Children before `mlp` that belong to it (OPT keeps two linear layers side by side)."""
    one_after_other: bool = True
    """Whether the MLP sees what attention added; if not, both see what enters the block."""

    def part(self, part: Part) -> Half | None:
        """One of the two."""
        return self.attention if part == "attention" else self.mlp

    def names(self, part: Part) -> tuple[str, ...]:
        """The children that hold the weights of a part; none where it was removed before."""
        half = self.part(part)
        if half is None:
            return ()
        return (half.name,) if part == "attention" else (*self.mlp_inputs, half.name)


def find_sublayers(block: nn.Module, hidden: Tensor, run: Callable[[Tensor], Tensor]) -> Sublayers:
    """Find attention and MLP: the first child with a matrix, and the last.

    Args:
        block: a decoder block in evaluation mode.
        hidden: [batch, length, width], an input of the block.
        run: the block's outputs for such an input.

    Raises:
        SecateurError: there are no two such children, a third one stands between them, or zeros
            in their place do not leave hidden states as they are.
    """
    first, middle, last = _children(block)
    forms = _forms(block, (first, last), run, hidden)
    if set(forms) != {first, last}:
        raise _refusal(block, f"it does not call {first} and {last}")
    attention, mlp = forms[first], forms[last]
    whole = run(hidden)
    with silenced(block, attention):
        only_mlp = run(hidden)
        with silenced(block, mlp):
            neither = run(hidden)
    if not torch.equal(neither, hidden):
        raise _refusal(
            block, "with zeros for both it still changes hidden states (by a norm after them, say)"
        )
    with silenced(block, mlp):
        between = run(hidden)
    with silenced(block, attention):
        after = run(between)
    side_by_side = between.double() + only_mlp.double() - hidden.double()
    in_turn, in_parallel = (_distance(sums, whole) for sums in (after, side_by_side))
    allowed = _TOLERANCE * _distance(hidden, whole) + _rounding(whole)
    if min(in_turn, in_parallel) > allowed:
        raise _refusal(block, f"what it adds is not that of {first} and that of {last}")
    return Sublayers(
        attention=None if _is_removed(block, first) else attention,
        mlp=None if _is_removed(block, last) else mlp,
        mlp_inputs=middle,
        one_after_other=in_turn <= in_parallel,
    )


@contextmanager
def silenced(block: nn.Module, half: Half | None) -> Iterator[None]:
    """While this is open, a child of the block returns zeros instead of computing anything.

    None stands for a half that is not there any more.
    """
    if half is None:
        yield
        return
    child = block.get_submodule(half.name)
    saved = vars(child).get("forward")
    child.forward = _zeros(half)
    try:
        yield
    finally:
        if saved is None:
            del child.forward
        else:
            child.forward = saved


def _noting_forms(name: str, forms: dict[str, Half]) -> Callable[..., None]:
    """A forward hook that notes in `forms` in which form the child `name` returns its output."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        length = len(output) if isinstance(output, tuple) else None
        tensor = output if length is None else output[0]
        forms[name] = Half(name, tensor.shape[-1], length)

    return hook


def stand_ins(block: nn.Module, sublayers: Sublayers, part: Part) -> dict[str, RemovedSublayer]:
    """By child's name, what takes the place of a part of a block; empty where it is gone."""
    half = sublayers.part(part)
    found = {}
    for name in sublayers.names(part):
        assert half is not None
        child = block.get_submodule(name)
        if name == half.name:
            module = RemovedSublayer(half.width, half.tuple_length, cache_index(child))
        else:
            # Its output is looked at by nothing but the other children of this part.
            module = RemovedSublayer(1)
        found[name] = module.train(child.training)
    return found


def cache_index(module: nn.Module) -> int | None:
    """The place of an attention's block in the key-value cache; None where it names none."""
    for child in module.modules():
        for name in INDEX_NAMES & vars(child).keys():
            index = vars(child)[name]
            if isinstance(index, int) and not isinstance(index, bool):
                return index
    return None


def removed_sublayers(model: nn.Module) -> dict[str, RemovedSublayer]:
    """What stands for removed sub-layers in a model, by dotted name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RemovedSublayer)
    }


def _zeros(half: Half) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        zeros = hidden.new_zeros(*hidden.shape[:-1], half.width)
        if half.tuple_length is None:
            return zeros
        return (zeros,) + (None,) * (half.tuple_length - 1)

    return forward


def _children(block: nn.Module) -> tuple[str, tuple[str, ...], str]:
    """First, between and last: the children with a matrix, or what stands for one."""
    names = [
        name
        for name, child in block.named_children()
        if isinstance(child, RemovedSublayer) or any(p.ndim > 1 for p in child.parameters())
    ]
    if len(names) < 2:
        raise SecateurError(
            f"expected {type(block).__name__} to have an attention and an MLP among its children, "
            f"got {names}"
        )
    middle = names[1:-1]
    # A linear layer, or what stands for one that went with its MLP.
    composed = [name for name in middle if len(list(block.get_submodule(name).children()))]
    if composed:
        raise _refusal(block, f"it has {composed} between them")
    return names[0], tuple(middle), names[-1]


def _is_removed(block: nn.Module, name: str) -> bool:
    return isinstance(block.get_submodule(name), RemovedSublayer)


def _forms(
    block: nn.Module, names: tuple[str, str], run: Callable[[Tensor], Tensor], hidden: Tensor
) -> dict[str, Half]:
    forms: dict[str, Half] = {}
    hooks = [
        block.get_submodule(name).register_forward_hook(_noting_forms(name, forms))
        for name in names
    ]
    try:
        run(hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return forms


def _distance(left: Tensor, right: Tensor) -> float:
    return float(torch.linalg.vector_norm(left.double() - right.double()))


def _rounding(hidden: Tensor) -> float:
    """What a few roundings of hidden states may amount to."""
    return 4 * torch.finfo(hidden.dtype).eps * float(torch.linalg.vector_norm(hidden.double()))


def _refusal(block: nn.Module, reason: str) -> SecateurError:
    return SecateurError(
        f"the attention or MLP of {type(block).__name__} cannot be removed by itself: {reason}"
    )
