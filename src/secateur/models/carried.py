"""What blocks hand to later blocks beside hidden states, kept sample by sample.

Where the last blocks of a model use keys and values of earlier ones (Gemma 4), the model gives all
of its blocks one mapping, which some write to and others read. A block that is worked on runs many
times, on any samples; so what was written is kept by sample, and each run is given a mapping of its
own samples.
"""

from collections import UserDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import SecateurError

Written = dict[Any, tuple[Tensor, ...]]
"""What blocks wrote of one sample: tensors [1, ...] under each key."""


@dataclass(frozen=True, eq=False)
class Carried:
    """A mapping that a model gives to its blocks, for some samples."""

    kind: type[UserDict[Any, Any]]
    dtype: torch.dtype
    """Of the hidden states that it went with."""
    samples: tuple[Written, ...]
    """Shared by the calls of all blocks."""

    def rows(self, first: int, end: int) -> "Carried":
        """The same for samples `first` to `end`."""
        return replace(self, samples=self.samples[first:end])

    @contextmanager
    def lent(self, hidden: Tensor) -> Iterator[UserDict[Any, Any]]:
        """The mapping for one run of a block on `hidden`; what the block writes is kept.

        Raises:
            SecateurError: it wrote something else than tensors with one row for each sample.
        """
        given = {
            key: self._joined(key, len(values), hidden)
            for key, values in self.samples[0].items()
            # What a look at one sample left is not there for the others.
            if all(key in own for own in self.samples)
        }
        mapping = self.kind(given)
        yield mapping
        for key, values in mapping.items():
            if values is not given.get(key):
                self._keep(key, values)

    def _joined(self, key: Any, count: int, hidden: Tensor) -> tuple[Tensor, ...]:
        joined = (torch.cat([own[key][place] for own in self.samples]) for place in range(count))
        # Tuned in another precision, a block is given all that enters it in that one.
        return tuple(
            values.to(hidden.device, hidden.dtype if values.dtype == self.dtype else values.dtype)
            for values in joined
        )

    def _keep(self, key: Any, values: Any) -> None:
        count = len(self.samples)
        if not isinstance(values, tuple) or not all(
            isinstance(value, Tensor) and value.ndim and len(value) == count for value in values
        ):
            raise SecateurError(
                "expected blocks to share tensors with one row for each sample, but one wrote "
                f"{type(values).__name__} under {key!r}; they cannot be worked on one by one"
            )
        for row, own in enumerate(self.samples):
            own[key] = tuple(value.detach()[row : row + 1] for value in values)


def joined_carried(parts: Sequence[Carried]) -> Carried:
    """One mapping for the samples of several, in order."""
    return replace(parts[0], samples=tuple(own for part in parts for own in part.samples))
