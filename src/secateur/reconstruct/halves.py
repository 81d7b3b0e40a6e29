"""The two halves of a block, attention and MLP, each of which adds to the residual stream.

A half is the block itself while the other half's module returns zeros: what remains adds its own
part to the hidden states and passes them on. So no family needs code of its own.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.sublayers import Half, noting_forms, silenced
from secateur.reconstruct.samples import BlockSamples

# Relative. Both ways do the same operations but for the addition of zeros; a block whose halves
# work side by side differs by as much as its halves do.
_TOLERANCE = 1e-3


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
        block.get_submodule(name).register_forward_hook(noting_forms(name, forms))
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


def _run(block: nn.Module, single: BlockSamples) -> Tensor:
    with torch.no_grad():
        return single.run(block, [0])
