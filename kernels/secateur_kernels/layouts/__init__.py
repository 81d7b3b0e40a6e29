"""Packed weights as validated values: bytes, layout, logical shape and type belong together.

`Canonical24` is for checkpoints and for slicing, `Fragment24` for kernels; both hold a weight
[N, K] of which two of every four consecutive columns are kept. `LowRank` is a weight as factors.
"""

from secateur_kernels.layouts.canonical24 import Canonical24
from secateur_kernels.layouts.fragment24 import Fragment24, RowOrder
from secateur_kernels.layouts.kind import BF16, FP16, WeightKind, kind_of
from secateur_kernels.layouts.low_rank import LowRank

__all__ = [
    "BF16",
    "FP16",
    "Canonical24",
    "Fragment24",
    "LowRank",
    "RowOrder",
    "WeightKind",
    "kind_of",
]
