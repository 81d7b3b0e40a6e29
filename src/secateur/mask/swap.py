"""Mask swaps (SparseSwaps, arXiv 2512.10922): trade a kept weight for a pruned one of the same
group while that makes the layer's output error smaller. No weight changes its value.

With p the pruned part of a row w and c = H p, keeping q instead of u changes p H p^T by
2 w_u c_u + w_u^2 H_uu - 2 w_q c_q + w_q^2 H_qq - 2 w_u w_q H_uq.
"""

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError

# A gain below this share of the row's error is rounding, and could be traded back and forth.
_LEAST_GAIN = 1e-6


def swap_masked(
    weight: Tensor,
    hessian: Tensor,
    keep_mask: Tensor,
    group: int | None,
    max_swaps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Improve a mask greedily: in each row, the best swap there is, until none helps.

    Rows go together, one swap of each at a time. A swap costs N * K * group multiplications over
    all rows, or N * K^2 without groups.

    Args:
        weight: dense [N, K], fp32 or float64.
        hessian: [K, K] symmetric, proportional to X.T @ X over calibration tokens.
        keep_mask: bool [N, K], not changed.
        group: consecutive columns within which weights are traded, so that a keep:group pattern
            stays one; None to trade within the whole row.
        max_swaps: in each row; None for as long as any helps.

    Returns:
        (mask bool [N, K] with as many kept in every group as before, swaps int64 [N]).

    Raises:
        SecateurError: shapes that do not fit, or K not divisible by the group.
    """
    rows, columns = weight.shape
    if hessian.shape != (columns, columns) or keep_mask.shape != weight.shape:
        raise SecateurError(
            f"expected hessian [{columns}, {columns}] and keep_mask {list(weight.shape)} for "
            f"weight {list(weight.shape)}, got {list(hessian.shape)} and {list(keep_mask.shape)}"
        )
    width = columns if group is None else group
    if columns % width:
        raise SecateurError(
            f"expected a number of columns divisible by the group of {group}, got {columns}"
        )
    hessian = hessian.to(weight.dtype)
    mask = keep_mask.clone()
    pruned = weight.masked_fill(mask, 0.0)
    pull = pruned @ hessian
    floor = _LEAST_GAIN * (pruned * pull).sum(dim=1)
    swaps = torch.zeros(rows, dtype=torch.int64, device=weight.device)
    active = torch.arange(rows, device=weight.device)
    squares = hessian.diagonal()
    inner = _within_groups(hessian, width)
    while len(active) and (max_swaps is None or int(swaps.max()) < max_swaps):
        gain, leaving, coming = _best_swaps(
            weight[active], pull[active], mask[active], squares, inner, width
        )
        better = gain < -floor[active]
        active, leaving, coming = active[better], leaving[better], coming[better]
        mask[active, leaving] = False
        mask[active, coming] = True
        pull[active] += (
            weight[active, leaving, None] * hessian[leaving]
            - weight[active, coming, None] * hessian[coming]
        )
        swaps[active] += 1
    return mask, swaps


def _within_groups(hessian: Tensor, width: int) -> Tensor:
    """[K / width, width, width]: the Hessian's blocks on the diagonal."""
    groups = len(hessian) // width
    blocks = hessian.view(groups, width, groups, width)
    chosen = torch.arange(groups, device=hessian.device)
    return blocks[chosen, :, chosen, :]


def _best_swaps(
    weight: Tensor, pull: Tensor, mask: Tensor, squares: Tensor, inner: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For every row the lowest change of its error, and the columns that leave and come."""
    rows, columns = weight.shape
    infinite = float("inf")
    own = weight.square() * squares
    leave = (2.0 * weight * pull + own).masked_fill(~mask, infinite)
    come = (own - 2.0 * weight * pull).masked_fill(mask, infinite)
    parts = (rows, columns // width, width)
    left, right, values = leave.view(parts), come.view(parts), weight.view(parts)
    gains = torch.full((rows, columns), infinite, dtype=weight.dtype, device=weight.device)
    partners = torch.zeros(rows, columns, dtype=torch.int64, device=weight.device)
    # One leaving column of every group at a time: [rows, groups, width] instead of width as much.
    for place in range(width):
        cross = values[..., place, None] * values * inner[:, place]
        change = left[..., place, None] + right - 2.0 * cross
        best, partner = change.min(dim=2)
        gains[:, place::width] = best
        partners[:, place::width] = partner
    gain, leaving = gains.min(dim=1)
    partner = partners.gather(1, leaving[:, None]).squeeze(1)
    return gain, leaving, leaving // width * width + partner
