"""Dtypes: the one that values of any floating dtype are computed in, and their names."""

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64: 16 bits are widened, and nothing is narrowed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_name(dtype: str | torch.dtype) -> str:
    """How options and records name a dtype: `torch.bfloat16` is `bfloat16`, as is its name."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
