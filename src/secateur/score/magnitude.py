"""Magnitude: a weight matters as much as it is large."""

from torch import Tensor


def score_magnitude(weight: Tensor) -> Tensor:
    """|W|.

    Args:
        weight: [N, K], any floating dtype.

    Returns:
        fp32 [N, K], contiguous (float64 stays float64).
    """
    return _widened(weight).abs()


def _widened(weight: Tensor) -> Tensor:
    return weight.contiguous() if weight.element_size() == 8 else weight.float().contiguous()
