"""The two halves of a block, attention and MLP, each of which adds to the residual stream.

A half is the block itself while the other half's module returns zeros: what remains adds its own
part to the hidden states and passes them on. So no family needs code of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.reconstruct.samples import BlockSamples

# Relative. Both ways do the same operations but for the addition of zeros; a block whose halves
# work side by side differs by as much as its halves do.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Half:
    """A child of a block whose output is one half's part of the residual stream."""

    name: str
    width: int
    """Features of its output."""
    tuple_length: int | None
    """None where it returns a tensor, else the length of the tuple that begins with it."""


def find_halves(block: nn.Module, samples: BlockSamples) -> tuple[Half, Half]:
    """The first and the last child with a matrix: attention and MLP of a sequential block.

    Args:
        block: a decoder block.
        samples: its inputs; the first sample is tried.

    Returns:
        (attention, MLP). With the MLP `silenced` the block is its attention half, and the other
        way round; the second half's inputs are the first half's outputs.

    Raises:
        SecateurError: there are no two such children, or the block is not one half after the
            other (attention and MLP side by side, say), so that it has to be tuned whole.
    """
    names = [
        name
        for name, child in block.named_children()
        if any(parameter.ndim > 1 for parameter in child.parameters())
    ]
    if len(names) < 2:
        raise SecateurError(
            f"expected {type(block).__name__} to have an attention and an MLP among its children, "
            f"got {names}; tune it as a whole"
        )
    first, last = names[0], names[-1]
    single = samples.single(0)
    forms: dict[str, Half] = {}
    hooks = [
        block.get_submodule(name).register_forward_hook(_noting(name, forms))
        for name in (first, last)
    ]
    try:
        whole = _run(block, single)
    finally:
        for hook in hooks:
            hook.remove()
    if set(forms) == {first, last}:
        with silenced(block, forms[last]):
            between = _run(block, single)
        with silenced(block, forms[first]):
            after = _run(block, replace(single, hidden=(between,)))
        error = torch.linalg.vector_norm((after - whole).double())
        if bool(error <= _TOLERANCE * torch.linalg.vector_norm(whole.double())):
            return forms[first], forms[last]
    raise SecateurError(
        f"expected {type(block).__name__} to add {first} and then {last} to the hidden states; it "
        "does not, so tune it as a whole"
    )


@contextmanager
def silenced(block: nn.Module, half: Half) -> Iterator[None]:
    """While this is open, a child of the block returns zeros instead of computing anything."""
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


def _zeros(half: Half) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        zeros = hidden.new_zeros(*hidden.shape[:-1], half.width)
        if half.tuple_length is None:
            return zeros
        return (zeros,) + (None,) * (half.tuple_length - 1)

    return forward


def _noting(name: str, forms: dict[str, Half]) -> Callable[..., None]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        length = len(output) if isinstance(output, tuple) else None
        tensor: Tensor = output if length is None else output[0]
        forms[name] = Half(name, tensor.shape[-1], length)

    return hook


def _run(block: nn.Module, single: BlockSamples) -> Tensor:
    with torch.no_grad():
        return single.run(block, [0])
