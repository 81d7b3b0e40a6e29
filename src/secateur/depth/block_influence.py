"""Block Influence: how far a block turns the hidden states (ShortGPT, arXiv 2403.03853)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import SecateurError


class BlockInfluence:
    """Running `1 - mean cosine` of one block's input and output, over tokens.

    BI = 1 - E_t[x_t . y_t / (|x_t| |y_t|)], with x_t entering the block and y_t leaving it; between
    0 (the block only rescales) and 2. Memory does not grow with the number of tokens added.

    For the last block, give hidden states before the final norm: the published code takes them
    after it, which inflates that block's influence.
    """

    def __init__(self) -> None:
        self._cosine_sum = 0.0
        self._num_tokens = 0

    def add(self, hidden_in: Tensor, hidden_out: Tensor) -> None:
        """Add tokens.

        Args:
            hidden_in: floating [..., width], what enters the block.
            hidden_out: the same shape, what leaves it.

        A token's cosine is computed in fp32 (fp64 for fp64 input) whatever the dtype, and summed in
        fp64. Where one of the two vectors is zero the cosine is 0; where both are, 1.

        Raises:
            SecateurError: shapes differ, a dtype is not floating, or a value is not finite.
        """
        _check_pair(hidden_in, hidden_out)
        if hidden_in.numel() == 0:
            return
        cosine = _row_cosine(hidden_in.detach(), hidden_out.detach())
        self._cosine_sum += float(cosine.sum(dtype=torch.float64))
        self._num_tokens += cosine.numel()

    def value(self) -> float:
        """The influence over all tokens added.

        Raises:
            SecateurError: no token was added.
        """
        if self._num_tokens == 0:
            raise SecateurError("expected at least one token for a Block Influence, got none")
        return 1.0 - self._cosine_sum / self._num_tokens


def least_influential(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` blocks to drop: lowest influence first, ascending indices.

    Of equal influences the higher index is dropped first. The choice is made once, from scores of
    the whole model, as ShortGPT does.

    Args:
        scores: Block Influence by block.
        count: how many, 0 or more and fewer than there are blocks.

    Raises:
        SecateurError: `count` is out of range, or a score is not finite.
    """
    if not 0 <= count < len(scores):
        raise SecateurError(
            f"expected to drop between 0 and {len(scores) - 1} of {len(scores)} blocks, got {count}"
        )
    broken = [index for index, score in enumerate(scores) if not math.isfinite(score)]
    if broken:
        raise SecateurError(f"expected finite influences, those of blocks {broken} are not")
    ranked = sorted(range(len(scores)), key=lambda index: (scores[index], -index))
    return tuple(sorted(ranked[:count]))


def _row_cosine(left: Tensor, right: Tensor) -> Tensor:
    left, left_is_zero = _unit_peak(left)
    right, right_is_zero = _unit_peak(right)
    products = (left * right).sum(-1)
    cosine = products / (left.norm(dim=-1) * right.norm(dim=-1))
    cosine = cosine.clamp(-1.0, 1.0)
    return torch.where(left_is_zero | right_is_zero, (left_is_zero & right_is_zero).float(), cosine)


def _unit_peak(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to a largest magnitude of 1, so that no norm overflows; which rows are zero."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    peak = hidden.abs().amax(-1, keepdim=True)
    return hidden / peak.clamp_min(torch.finfo(peak.dtype).tiny), (peak == 0).squeeze(-1)


def _check_pair(hidden_in: Tensor, hidden_out: Tensor) -> None:
    if hidden_in.shape != hidden_out.shape or hidden_in.ndim == 0:
        raise SecateurError(
            "expected hidden states of one shape [..., width] before and after the block, got "
            f"{list(hidden_in.shape)} and {list(hidden_out.shape)}"
        )
    for where, hidden in (("before", hidden_in), ("after", hidden_out)):
        if not hidden.is_floating_point():
            raise SecateurError(
                f"expected floating hidden states {where} the block, got {hidden.dtype}"
            )
        num_broken = int((~torch.isfinite(hidden)).sum())
        if num_broken:
            raise SecateurError(
                f"expected finite hidden states {where} the block, {num_broken} of "
                f"{hidden.numel()} values are not"
            )
