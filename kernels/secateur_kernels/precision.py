"""The dtype that weights and activations of any floating dtype are computed in."""

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64: 16 bits are widened, and nothing is narrowed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
