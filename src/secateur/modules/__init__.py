"""Linear layers that hold a compressed weight and call one op."""

from secateur.modules.low_rank_linear import LowRankLinear
from secateur.modules.sparse24_linear import Sparse24Linear
from secateur.modules.sparse_low_rank_linear import SparseLowRankLinear

__all__ = ["LowRankLinear", "Sparse24Linear", "SparseLowRankLinear"]
