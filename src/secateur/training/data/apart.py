"""Whether a model keeps the examples of one window apart."""

import torch
from torch import Tensor, nn

from secateur.evaluate.forward import evaluating, input_device

_FIRST, _SECOND = 5, 7  # tokens of two examples in one window
_NUM_TOKENS = 16  # every vocabulary has so many

# Far above rounding in bfloat16, far below what another context does to logits.
_RELATIVE_TOLERANCE = 0.03


def keeps_examples_apart(model: nn.Module) -> bool:
    """Try whether packed examples have the logits that they have alone.

    Without an attention mask and a key-value cache, most models of transformers see from
    `position_ids` that begin anew where an example begins, and build a block-diagonal mask. Some
    (state-space models, old position codes, FlashAttention 2 on several rows) do not: for those,
    `TrainingText(pack=False)` puts one example into a window.

    Args:
        model: a causal language model, called with `input_ids`, `position_ids` and `use_cache`.
    """
    generator = torch.Generator().manual_seed(0)
    first, other, second = (
        torch.randint(_NUM_TOKENS, (2, length), generator=generator).to(input_device(model))
        for length in (_FIRST, _FIRST, _SECOND)
    )
    with evaluating(model):
        try:
            alone = _logits(model, second, [_SECOND])
            packed = _logits(model, torch.cat([first, second], 1), [_FIRST, _SECOND])
            behind_other = _logits(model, torch.cat([other, second], 1), [_FIRST, _SECOND])
        except TypeError:  # it takes no positions
            return False
    tolerance = _RELATIVE_TOLERANCE * alone.std()
    pairs = ((packed, alone), (packed, behind_other))
    return all(bool((a[:, -_SECOND:] - b[:, -_SECOND:]).abs().max() <= tolerance) for a, b in pairs)


def _logits(model: nn.Module, tokens: Tensor, lengths: list[int]) -> Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths]).to(tokens.device)
    rows = positions.expand(len(tokens), -1)
    logits: Tensor = model(input_ids=tokens, position_ids=rows, use_cache=False).logits
    return logits.float()
