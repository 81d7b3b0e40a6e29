"""Mask: from a score to the weights that stay. True = keep; ties keep the lower column index."""

from secateur.mask.grouped import select_grouped
from secateur.mask.swap import swap_masked
from secateur.mask.unstructured import select_unstructured

__all__ = ["select_grouped", "select_unstructured", "swap_masked"]
