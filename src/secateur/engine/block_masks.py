"""What each row attends to, as blocks for torch's flex attention: no key beyond them is read.

So one compiled step serves texts of any length, and a long cache costs a short text nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Keys of a block; flex attention's own default."""


def block_masks(
    windows: Mapping[str, int | None], positions: Tensor, length: int
) -> dict[str, BlockMask]:
    """Masks for one new token a row, as `MaskPlan.masks` gives them.

    Args:
        windows: kind of layer -> how many tokens back it sees; None for all.
        positions: int64 [B, 1]. A row at `length` or beyond is idle, and reads one block.
        length: keys of the cache, a multiple of `BLOCK`.
    """
    position = positions.masked_fill(positions >= length, 0).squeeze(1)
    return {kind: _block_mask(position, length, window) for kind, window in windows.items()}


def _block_mask(position: Tensor, length: int, window: int | None) -> BlockMask:
    first = torch.zeros_like(position)
    if window is not None:
        first = (position - window + 1).clamp_min(0)
    blocks = torch.arange(length // BLOCK, device=position.device)
    first_block = first // BLOCK
    count = position // BLOCK - first_block + 1
    # The blocks that are read come first; flex attention looks at no more than `count`.
    indices = (first_block[:, None] + blocks).clamp_max(length // BLOCK - 1)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= position[batch]) & (key >= first[batch])

    return BlockMask.from_kv_blocks(
        count[:, None, None].to(torch.int32),
        indices[:, None, None].to(torch.int32),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=visible,
        seq_lengths=(1, length),
        # What only gradients need.
        compute_q_blocks=False,
    )
