"""Which two of four columns are kept, as pairs of indices and as nibbles.

A nibble is the lower index plus four times the higher one. Pairs strictly increase: hardware
demands it (ordered metadata), so that just six nibbles are legal.
"""

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError

# Columns 0 and 1, both holding zero: what padding is made of.
PADDING_NIBBLE = 0b0100
LEGAL_NIBBLES = (0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110)


def two_of_four(keep_mask: Tensor) -> Tensor:
    """Exactly two columns for every group, from a mask that keeps at most two.

    Args:
        keep_mask: bool [N, K], K divisible by 4.

    Returns:
        int64 [N, K / 4, 2], the kept columns within each group, ascending. Where the mask keeps
        fewer than two, the lowest other columns fill up.

    Raises:
        SecateurError: some group keeps more than two; names the first.
    """
    rows, columns = keep_mask.shape
    groups = keep_mask.view(rows, columns // 4, 4)
    kept = groups.sum(dim=2)
    if bool((kept > 2).any()):
        row, group = (kept > 2).nonzero()[0].tolist()
        raise SecateurError(
            f"expected at most 2 of 4 consecutive columns kept, but row {row} keeps "
            f"{int(kept[row, group])} of columns {4 * group} to {4 * group + 3}"
        )
    # A stable descending sort of the mask puts kept columns first, each part in column order.
    order = groups.to(torch.uint8).argsort(dim=2, descending=True, stable=True)
    return order[:, :, :2].sort(dim=2).values


def nibbles_of(pairs: Tensor) -> Tensor:
    """uint8 [...] from index pairs int64 [..., 2]."""
    return (pairs[..., 0] | (pairs[..., 1] << 2)).to(torch.uint8)


def pairs_of(nibbles: Tensor) -> Tensor:
    """int64 [..., 2] from nibbles uint8 [...]."""
    wide = nibbles.long()
    return torch.stack([wide & 3, wide >> 2], dim=-1)


def check_nibbles(nibbles: Tensor) -> None:
    """Raise SecateurError if a nibble is not a strictly increasing pair; names the first.

    On the `meta` device there is nothing to look at.
    """
    if nibbles.is_meta:
        return
    legal = torch.zeros(16, dtype=torch.bool, device=nibbles.device)
    legal[list(LEGAL_NIBBLES)] = True
    illegal = ~legal[nibbles.long()]
    if bool(illegal.any()):
        place = illegal.nonzero()[0].tolist()
        first = int(nibbles[tuple(place)])
        raise SecateurError(
            f"the packed weight is corrupt: group {place} has the index pair "
            f"({first & 3}, {first >> 2}), expected two increasing columns of 0 to 3"
        )


def scatter_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """Dense [N, K] with `values` [N, K / 4, 2] at `pairs` [N, K / 4, 2], zero elsewhere."""
    rows, groups, _ = pairs.shape
    dense = values.new_zeros(rows, groups, 4)
    return dense.scatter_(2, pairs, values).view(rows, 4 * groups)
