"""Wanda (Sun et al., arXiv 2306.11695): weight magnitude times the norm of its input channel."""

from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import wide_dtype


def score_wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * input_norm_j.

    Args:
        weight: [N, K], any floating dtype.
        input_norm: [K], the L2 norm of each input channel over calibration tokens. A constant
            factor, such as an average over samples, does not change a mask.

    Returns:
        fp32 [N, K], contiguous (float64 if either argument is).

    Raises:
        SecateurError: the shapes do not fit.
    """
    if input_norm.shape != weight.shape[1:]:
        raise SecateurError(
            f"expected input_norm [{weight.shape[1]}] for weight {list(weight.shape)}, "
            f"got {list(input_norm.shape)}"
        )
    return (weight.to(wide_dtype(weight.dtype)).abs() * input_norm).contiguous()
