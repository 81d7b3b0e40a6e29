"""Run a model from one of its blocks on, with hidden states that were computed before.

Embedding, masks, position embeddings, final norm and head are the model's own code: the blocks
that are skipped are replaced, while it runs, by stubs that hand the kept hidden states on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from secateur.models.blocks import BlockList

OutputForms = tuple[int | None, ...]
"""By block: None where it returns a tensor, else the length of the tuple that it returns."""


@contextmanager
def entering_at(
    blocks: BlockList, forms: OutputForms, index: int, hidden: Tensor
) -> Iterator[None]:
    """While this is open, the model computes blocks from `index` on, and `hidden` enters there.

    With `index` the number of blocks, final norm and head alone are computed.
    """
    skipped = list(blocks.modules)[:index]
    saved = [vars(block).get("forward") for block in skipped]
    for block, length in zip(skipped, forms, strict=False):
        block.forward = _handing_on(hidden, length)
    try:
        yield
    finally:
        for block, forward in zip(skipped, saved, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def _handing_on(hidden: Tensor, length: int | None) -> Callable[..., Any]:
    def forward(*_: Any, **__: Any) -> Any:
        return hidden if length is None else (hidden,) + (None,) * (length - 1)

    return forward
