"""Kernels for pruned weights. Needs torch, triton, numpy and safetensors; never `secateur`.

Weights come as validated values (`layouts`), ops take them on any device: plain torch on a CPU,
Triton or the compiled library on an NVIDIA GPU, chosen by `dispatch`.
"""

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts import BF16, FP16, Canonical24, Fragment24, LowRank
from secateur_kernels.low_rank_linear.op import low_rank_linear
from secateur_kernels.low_rank_linear.sparse_op import sparse24_low_rank_linear
from secateur_kernels.pack24.op import pack24
from secateur_kernels.pack24.pruned import Pruned24
from secateur_kernels.sparse24_linear.canonical_op import canonical24_linear
from secateur_kernels.sparse24_linear.op import sparse24_linear
from secateur_kernels.threshold.op import keep_largest_per_row
from secateur_kernels.unpack24.op import unpack24
from secateur_kernels.version import __version__

__all__ = [
    "BF16",
    "FP16",
    "Canonical24",
    "Fragment24",
    "LowRank",
    "Pruned24",
    "SecateurError",
    "__version__",
    "canonical24_linear",
    "keep_largest_per_row",
    "low_rank_linear",
    "pack24",
    "sparse24_linear",
    "sparse24_low_rank_linear",
    "unpack24",
]
