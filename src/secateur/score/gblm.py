"""GBLM-Pruner (Das et al., arXiv 2311.04902): Wanda plus the gradient of the whole model's loss."""

from torch import Tensor

from secateur.score.regional_gradient import score_regional_gradient

DEFAULT_SCALE = 100.0


def score_gblm(
    weight: Tensor, gradient_norm: Tensor, input_norm: Tensor, scale: float = DEFAULT_SCALE
) -> Tensor:
    """|W_ij| * (scale * gradient_norm_ij + input_norm_j).

    Args:
        weight: [N, K], any floating dtype.
        gradient_norm: [N, K], sqrt of the sum over samples (not the mean) of squared gradients of
            the model's mean cross entropy on one sample each.
        input_norm: [K], averaged over samples as Wanda's code does: sqrt(sum over tokens of
            x_j^2 / num_samples). The two are added, so the convention matters.
        scale: the authors' factor on gradients.

    Returns:
        fp32 [N, K], contiguous (float64 if any argument is).

    Raises:
        SecateurError: the shapes do not fit.
    """
    return score_regional_gradient(weight, gradient_norm, input_norm, scale)
