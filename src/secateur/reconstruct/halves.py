"""The two halves of a block, attention and MLP, where one comes after the other.

A half is the block itself while the other half's module returns zeros: what remains adds its own
part to the hidden states and passes them on. So no family needs code of its own.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.sublayers import Half, find_sublayers
from secateur.reconstruct.samples import BlockSamples


def find_halves(block: nn.Module, samples: BlockSamples) -> tuple[Half, Half]:
    """Attention and MLP of a block that adds one and then the other to the hidden states.

    Args:
        block: a decoder block in evaluation mode.
        samples: its inputs; the first sample is tried.

    Returns:
        (attention, MLP). With the MLP `silenced` the block is its attention half, and the other
        way round; the second half's inputs are the first half's outputs.

    Raises:
        SecateurError: there are no two such parts (see `find_sublayers`), or they work side by
            side, so that the block has to be tuned whole.
    """
    single, like = samples.single(0), next(block.parameters())

    def run(hidden: Tensor) -> Tensor:
        return replace(single, hidden=(hidden,)).run(block, [0])

    with torch.no_grad():
        try:
            found = find_sublayers(block, single.hidden[0].to(like.device, like.dtype), run)
        except SecateurError as error:
            raise SecateurError(f"{error}; tune it as a whole") from None
    if found.attention is None or found.mlp is None or not found.one_after_other:
        raise SecateurError(
            f"expected {type(block).__name__} to add attention and then MLP to the hidden states; "
            "it does not, so tune it as a whole"
        )
    return found.attention, found.mlp
