"""Relative magnitude: how much of a block's output the block itself put there.

Samragh et al. 2023 (arXiv 2309.16119), as ShortGPT (arXiv 2403.03853) compares itself with it.
"""

import torch
from torch import Tensor

from secateur.depth.hidden_pair import check_pair
from secateur.errors import SecateurError


class RelativeMagnitude:
    """Running mean of `||y - x|| / ||y||` over tokens, x entering a block and y leaving it.

    0 where the block does nothing. Memory does not grow with the number of tokens added.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._num_tokens = 0

    def add(self, hidden_in: Tensor, hidden_out: Tensor) -> None:
        """Add tokens.

        Args:
            hidden_in: floating [..., width], what enters the block.
            hidden_out: the same shape, what leaves it.

        Norms are taken in fp64, where no norm of fp32 values overflows. A token that enters and
        leaves as zero counts 0.

        Raises:
            SecateurError: shapes differ, a dtype is not floating, a value is not finite, or a token
                that was not zero leaves as zero.
        """
        check_pair(hidden_in, hidden_out)
        before, after = hidden_in.detach().double(), hidden_out.detach().double()
        change = torch.linalg.vector_norm(after - before, dim=-1)
        size = torch.linalg.vector_norm(after, dim=-1)
        num_lost = int(((size == 0) & (change > 0)).sum())
        if num_lost:
            raise SecateurError(
                f"expected tokens that do not leave the block as zero, {num_lost} of "
                f"{size.numel()} do: they have no relative magnitude"
            )
        self._sum += float((change / size.masked_fill(size == 0, 1.0)).sum())
        self._num_tokens += size.numel()

    def value(self) -> float:
        """The mean over all tokens added.

        Raises:
            SecateurError: no token was added.
        """
        if self._num_tokens == 0:
            raise SecateurError("expected at least one token for a relative magnitude, got none")
        return self._sum / self._num_tokens
