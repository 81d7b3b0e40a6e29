"""Block Influence: how far a block turns the hidden states (ShortGPT, arXiv 2403.03853)."""

import torch
from torch import Tensor

from secateur.depth.cosine import row_cosine
from secateur.depth.hidden_pair import check_pair
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
        check_pair(hidden_in, hidden_out)
        if hidden_in.numel() == 0:
            return
        cosine = row_cosine(hidden_in.detach(), hidden_out.detach())
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
