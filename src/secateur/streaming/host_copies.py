"""Memory of the host that weights of one block after another are copied to."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """Takes weights from a device into the same memory again and again.

    New memory costs more than the copy: its pages are made as they are written to, and what is not
    pinned goes through a small buffer of the driver.
    """

    def __init__(self) -> None:
        """Without memory yet."""
        self._places: list[Tensor] = []

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies by name; those that were given before are overwritten."""
        places = self._places + [torch.empty(0)] * (len(tensors) - len(self._places))
        copies: dict[str, Tensor] = {}
        for (name, tensor), place in zip(tensors.items(), places, strict=False):
            if place.shape != tensor.shape or place.dtype != tensor.dtype:
                place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = place.copy_(tensor)
        self._places = list(copies.values())
        return copies
