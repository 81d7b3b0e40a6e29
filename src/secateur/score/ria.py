"""RIA, relative importance and activations (Zhang et al., ICLR 2024): a weight counts by its share
of its row and of its column, so that no channel is pruned away whole.
"""

from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import wide_dtype

DEFAULT_POWER = 0.5


def score_ria(weight: Tensor, input_norm: Tensor, power: float = DEFAULT_POWER) -> Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * input_norm_j ** power.

    Args:
        weight: [N, K], any floating dtype.
        input_norm: [K], the L2 norm of each input channel over calibration tokens. A constant
            factor does not change a mask.
        power: of the norm; the paper's a = 0.5.

    Returns:
        fp32 [N, K], contiguous (float64 if either argument is). Rows and columns of zeros score
        zero.

    Raises:
        SecateurError: the shapes do not fit.
    """
    if input_norm.shape != weight.shape[1:]:
        raise SecateurError(
            f"expected input_norm [{weight.shape[1]}] for weight {list(weight.shape)}, "
            f"got {list(input_norm.shape)}"
        )
    size = weight.to(wide_dtype(weight.dtype)).abs()
    relative = size * (_inverse(size.sum(dim=0)) + _inverse(size.sum(dim=1, keepdim=True)))
    return (relative * input_norm**power).contiguous()


def _inverse(sums: Tensor) -> Tensor:
    return (1.0 / sums).masked_fill(sums == 0, 0.0)
