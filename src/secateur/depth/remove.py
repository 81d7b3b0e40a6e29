"""Take the attention or the MLP out of blocks, so that nothing of it is computed or stored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.cache_name import cache_name
from secateur.models.sublayers import Part, Sublayers, stand_ins

# Of the largest logit. With a cache products have other shapes, so their sums are rounded
# otherwise: by up to three roundings to bf16 in random models of 8 blocks.
_CACHE_TOLERANCE = 1e-2
_CACHE_ROUNDINGS = 8


def remove_sublayers(
    blocks: BlockList, sublayers: Mapping[int, Sublayers], part: Part
) -> tuple[str, ...]:
    """Put stand-ins in the place of one part of some blocks; see `RemovedSublayer`.

    What the part added to the residual stream is exactly zero from now on.

    Args:
        blocks: of the model, changed in place.
        sublayers: by index of the blocks to change, what they consist of.
        part: what goes.

    Returns:
        dotted names of the children that were replaced.

    Raises:
        SecateurError: a block has no such part any more; nothing was changed.
    """
    gone = [index for index, found in sublayers.items() if found.part(part) is None]
    if gone:
        raise SecateurError(f"the {part} of blocks {gone} was removed before")
    names = []
    for index, found in sorted(sublayers.items()):
        block = blocks.modules[index]
        for name, module in stand_ins(block, found, part).items():
            setattr(block, name, module)
            names.append(f"{blocks.block_name(index)}.{name}")
    return tuple(names)


def rehearse_removal(
    model: nn.Module,
    blocks: BlockList,
    sublayers: Mapping[int, Sublayers],
    part: Part,
    input_ids: Tensor,
) -> None:
    """Raise SecateurError if the model cannot do without the part; it is left as it was.

    The model runs with stand-ins in all of the blocks, at once and again token by token with its
    key-value cache: both must agree.

    Args:
        model: in evaluation mode.
        blocks: its blocks.
        sublayers: by index of the blocks, what they consist of.
        part: what is to go.
        input_ids: int64 [1, length], at least three tokens.
    """
    with _removed(blocks, sublayers, part), torch.no_grad():
        try:
            whole = model(input_ids=input_ids, use_cache=False).logits[:, -1]
            begun = model(input_ids=input_ids[:, :-2], use_cache=True)
            cached = {cache_name(model): getattr(begun, cache_name(model))}
            for place in range(input_ids.shape[1] - 2, input_ids.shape[1]):
                step = input_ids[:, place : place + 1]
                last = model(input_ids=step, use_cache=True, **cached).logits[:, -1]
        except Exception as error:  # whatever the model's code raises, a user would meet it
            raise SecateurError(
                f"{type(model).__name__} does not run without the {part} of its blocks: {error}"
            ) from error
    distance = float((last.double() - whole.double()).abs().max())
    share = max(_CACHE_TOLERANCE, _CACHE_ROUNDINGS * torch.finfo(whole.dtype).eps)
    if not distance <= share * float(whole.double().abs().max()):
        raise SecateurError(
            f"without the {part} of its blocks {type(model).__name__} gives other logits with a "
            f"key-value cache than without, by {distance:.3g}: the cache loses count of tokens"
        )


@contextmanager
def _removed(blocks: BlockList, sublayers: Mapping[int, Sublayers], part: Part) -> Iterator[None]:
    saved: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for index, found in sublayers.items():
            block = blocks.modules[index]
            for name, stand_in in stand_ins(block, found, part).items():
                saved.append((block, name, block.get_submodule(name)))
                setattr(block, name, stand_in)
        yield
    finally:
        for block, name, original in saved:
            setattr(block, name, original)
