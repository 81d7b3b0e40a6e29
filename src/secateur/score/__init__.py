"""Score: how much each weight matters. Higher = keep. Pure functions of plain tensors."""

from secateur.score.magnitude import score_magnitude
from secateur.score.wanda import score_wanda

__all__ = ["score_magnitude", "score_wanda"]
