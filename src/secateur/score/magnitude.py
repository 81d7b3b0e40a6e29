"""Magnitude: a weight matters as much as it is large."""

from torch import Tensor

from secateur_kernels.precision import wide_dtype


def score_magnitude(weight: Tensor) -> Tensor:
    """|W|.

    Args:
        weight: [N, K], any floating dtype.

    Returns:
        fp32 [N, K], contiguous (float64 stays float64).
    """
    return weight.to(wide_dtype(weight.dtype)).contiguous().abs()
