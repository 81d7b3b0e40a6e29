"""What each token attends to, and how that reaches transformers' attention layers.

A mask of one element stands for plain causal attention whose last query is the last key: torch
then takes its fastest kernel, and no mask of the size of the prompt is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "secateur_rows"
"""The name under which transformers knows `attention_of_rows`."""


def attention_of_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in the form of transformers' attention interface.

    Args:
        query: [B, heads, T, D].
        key: [B, key heads, L, D]; so is `value`. The number of heads is a multiple of theirs.
        attention_mask: [B or 1, 1, T, L], added to scores; or one element, for causal attention
            to all L keys, the last T of which are the queries' own; or blocks, for flex attention
            (in compiled code only is it fast).

    Returns:
        [B, T, heads, D], and None for probabilities that are not kept.
    """
    groups = query.shape[1] // key.shape[1]
    length = query.shape[2]
    if isinstance(attention_mask, Tensor):
        # Kernels may read a mask of another dtype as if it were of this one.
        attention_mask = attention_mask.to(query.dtype)
    if isinstance(attention_mask, BlockMask):
        output = flex_attention(
            query, key, value, None, attention_mask, scaling, enable_gqa=groups > 1
        )
    elif length == 1:
        output = _one_query(query, key, value, attention_mask, scaling, groups)
    elif attention_mask.numel() > 1:
        key, value = (_repeated(states, groups) for states in (key, value))
        output = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
    elif key.shape[2] == length:
        output = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
    else:
        key, value = (_repeated(states, groups) for states in (key, value))
        bias = causal_lower_right(length, key.shape[2])
        output = scaled_dot_product_attention(query, key, value, bias, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _one_query(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, groups: int
) -> Tensor:
    # The heads that share keys stand side by side as queries: keys are read once, not copied.
    batch, heads, _, head_dim = query.shape
    query = query.reshape(batch, heads // groups, groups, head_dim)
    seen = mask.expand(-1, -1, groups, -1) if mask.shape[-1] > 1 else None
    output = scaled_dot_product_attention(query, key, value, seen, scale=scaling)
    return output.reshape(batch, heads, 1, value.shape[-1])


def _repeated(states: Tensor, groups: int) -> Tensor:
    return states.repeat_interleave(groups, dim=1) if groups > 1 else states


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention_of_rows)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


Masks = dict[str, Tensor]
"""Kind of layer -> numbers that are added to its scores: 0, or the lowest where nothing is seen."""


@dataclass(frozen=True)
class MaskPlan:
    """The masks that a model wants."""

    windows: dict[str, int | None]
    """Kind of layer -> how many tokens back it sees, itself included; None for all."""
    own_attention: bool
    """Whether the model's own attention computes, which knows no mask of one element."""

    def masks(self, positions: Tensor, length: int, dtype: torch.dtype) -> Masks:
        """[B, 1, T, length] for tokens at `positions` int64 [B, T] and keys at 0 to `length` - 1.

        Numbers and not True and False, which attention would turn into numbers in every layer.
        """
        return {
            kind: _numbers(_visible(positions, length, window), dtype)
            for kind, window in self.windows.items()
        }

    def causal_masks(self, positions: Tensor, length: int, dtype: torch.dtype) -> Masks:
        """The same for one row whose tokens are the last of `length` keys."""
        masks = {}
        for kind, window in self.windows.items():
            if self.own_attention or (window is not None and window < length):
                masks[kind] = _numbers(_visible(positions, length, window), dtype)
            else:
                masks[kind] = torch.zeros(1, 1, 1, 1, dtype=dtype, device=positions.device)
        return masks


def _numbers(visible: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, lowest)


def _visible(positions: Tensor, length: int, window: int | None) -> Tensor:
    keys = torch.arange(length, device=positions.device)
    queries = positions[:, None, :, None]
    visible = keys <= queries
    if window is not None:
        visible = visible & (keys > queries - window)
    return visible


@contextmanager
def attention_set_to(configs: tuple[Any, ...], name: str) -> Iterator[None]:
    """Have a model use an attention function while this is open; it stays the caller's model."""
    saved = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, before in zip(configs, saved, strict=True):
            config._attn_implementation = before
