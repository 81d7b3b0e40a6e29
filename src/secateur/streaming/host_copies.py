"""Memory of the host that weights of one block after another are copied to."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """Takes the weights of one block, and later those of another, into the same memory.

    New memory costs more than the copy: its pages are made as they are written to. With a GPU it is
    pinned, as other memory is copied to and from there through a small buffer of the driver.
    """

    def __init__(self) -> None:
        """Without memory yet."""
        self._places: dict[int, Tensor] = {}

    def copy(self, number: int, tensor: Tensor) -> Tensor:
        """A contiguous copy in the place of this number, which loses what it held before."""
        place = self._places.get(number)
        if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
            pinned = torch.cuda.is_available()
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._places[number] = place
        return place.copy_(tensor)

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies by name; all that were given before are lost."""
        self._places = {n: place for n, place in self._places.items() if n < len(tensors)}
        return {
            name: self.copy(number, tensor) for number, (name, tensor) in enumerate(tensors.items())
        }
