"""Run a model from one of its blocks on, with hidden states that were computed before.

Embedding, masks, position embeddings, final norm and head are the model's own code: the blocks
that are skipped are replaced, while it runs, by stubs that hand the kept hidden states on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.replay import capture_batch
from secateur.models.trace import trace_blocks

OutputForms = tuple[int | None, ...]
"""By block: None where it returns a tensor, else the length of the tuple that it returns."""


def enterable_forms(model: nn.Module, blocks: BlockList, input_ids: Tensor) -> OutputForms:
    """What every block returns, in a model that can be run from any of its blocks on.

    Args:
        input_ids: int64 [batch, length]; a few tokens of it are used.

    Raises:
        SecateurError: it cannot be, with the reason.
    """
    few = input_ids[:1, :8]
    forms = trace_blocks(model, blocks, {}, few).output_forms
    if any(call.carried for call in capture_batch(model, blocks, forms, few).calls):
        raise SecateurError(
            f"blocks of {type(model).__name__} leave keys and values for later ones, so that it "
            "cannot be run from the middle"
        )
    return forms


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
