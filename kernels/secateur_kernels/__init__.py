"""Kernels for pruned weights. Needs torch, triton, numpy and safetensors; never `secateur`.

Weights come as validated values (`layouts`), ops take them on any device: plain torch on a CPU,
Triton or the compiled library on an NVIDIA GPU, chosen by `dispatch`.
"""

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts import BF16, FP16, Canonical24, Fragment24, LowRank
from secateur_kernels.low_rank_linear.op import low_rank_linear
from secateur_kernels.low_rank_linear.sparse_op import sparse24_low_rank_linear
from secateur_kernels.sparse24_linear.canonical_op import canonical24_linear
from secateur_kernels.sparse24_linear.op import sparse24_linear
from secateur_kernels.version import __version__

__all__ = [
    "BF16",
    "FP16",
    "Canonical24",
    "Fragment24",
    "LowRank",
    "SecateurError",
    "__version__",
    "canonical24_linear",
    "low_rank_linear",
    "sparse24_linear",
    "sparse24_low_rank_linear",
]
