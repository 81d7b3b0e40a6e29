"""What measures that compare hidden states before and after a block ask of them."""

import torch
from torch import Tensor

from secateur.errors import SecateurError


def check_pair(hidden_in: Tensor, hidden_out: Tensor) -> None:
    """Raise SecateurError unless both are floating, finite and of one shape [..., width]."""
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
