"""Packed weights as validated values: bytes, layout, logical shape and type belong together.

`Canonical24` is for checkpoints and for slicing, `Fragment24` for kernels; both hold a weight
[N, K] of which two of every four consecutive columns are kept.
"""

from secateur_kernels.layouts.canonical24 import Canonical24
from secateur_kernels.layouts.fragment24 import Fragment24
from secateur_kernels.layouts.kind import BF16, FP16, WeightKind, kind_of

__all__ = ["BF16", "FP16", "Canonical24", "Fragment24", "WeightKind", "kind_of"]
