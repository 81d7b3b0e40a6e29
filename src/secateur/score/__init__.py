"""Score: how much each weight matters. Higher = keep. Pure functions of plain tensors."""

from secateur.score.gblm import score_gblm
from secateur.score.magnitude import score_magnitude
from secateur.score.regional_gradient import (
    InputNormalisation,
    norm_divisor,
    regional_gradients,
    score_regional_gradient,
)
from secateur.score.ria import score_ria
from secateur.score.wanda import score_wanda

__all__ = [
    "InputNormalisation",
    "norm_divisor",
    "regional_gradients",
    "score_gblm",
    "score_magnitude",
    "score_regional_gradient",
    "score_ria",
    "score_wanda",
]
