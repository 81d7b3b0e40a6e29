"""Kernels for pruned weights. Needs torch, triton, numpy and safetensors; never `secateur`."""

from secateur_kernels.errors import SecateurError
from secateur_kernels.version import __version__

__all__ = ["SecateurError", "__version__"]
