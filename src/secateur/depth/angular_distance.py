"""Angular distance across a span of blocks (arXiv 2403.17887)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.depth.cosine import row_cosine
from secateur.depth.hidden_pair import check_pair
from secateur.errors import SecateurError


class AngularDistance:
    """d(l, n) = arccos(cosine) / pi of what enters block l and block l + n.

    Only the last token of each sample counts, averaged over samples: it alone has seen all others.
    "The Unreasonable Ineffectiveness of the Deeper Layers", equation 7. Between 0 and 1.
    """

    def __init__(self) -> None:
        self._places: list[list[Tensor]] = []

    def add(self, place: int, hidden: Tensor) -> None:
        """Add samples as they are at one place.

        Args:
            place: 0 for what enters block 0, i for what leaves block i - 1. Each place gets the
                same samples in the same order; places begin in ascending order.
            hidden: floating [batch, length, width]; the last token is kept, in fp32 or fp64.

        Raises:
            SecateurError: it has another shape, or places are out of order.
        """
        if hidden.ndim != 3 or hidden.shape[1] == 0:
            raise SecateurError(
                f"expected hidden states [batch, length, width], got {list(hidden.shape)}"
            )
        if place not in (len(self._places) - 1, len(self._places)):
            raise SecateurError(
                f"expected hidden states of place {len(self._places)} next, got place {place}"
            )
        if place == len(self._places):
            self._places.append([])
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # A copy: buffers of hidden states are written over.
        self._places[place].append(hidden[:, -1].detach().to("cpu", dtype, copy=True))

    def spans(self, length: int) -> tuple[float, ...]:
        """The distance across every span of `length` blocks, by the span's first block.

        Raises:
            SecateurError: there are fewer blocks, no samples, or values that are not finite.
        """
        if not 1 <= length < len(self._places):
            raise SecateurError(
                f"expected a span of 1 to {max(0, len(self._places) - 1)} blocks, got {length}"
            )
        states = [torch.cat(samples) for samples in self._places]
        pairs = zip(states, states[length:], strict=False)
        return tuple(_distance(before, after) for before, after in pairs)


def nearest_span(distances: Sequence[float], length: int, first: int, stop: int) -> tuple[int, ...]:
    """The blocks of the span with the least distance; of equal ones the deeper.

    Args:
        distances: by first block, of spans of `length` blocks.
        length: blocks of a span.
        first: the first block that may be in it.
        stop: the block after the last that may be.

    Raises:
        SecateurError: no span fits, or its distance is not finite.
    """
    starts = range(first, stop - length + 1)
    if not starts:
        raise SecateurError(
            f"expected room for {length} blocks in a row, but only {max(0, stop - first)} may go"
        )
    broken = [start for start in starts if not math.isfinite(distances[start])]
    if broken:
        raise SecateurError(f"expected finite distances, those from blocks {broken} on are not")
    best = min(starts, key=lambda start: (distances[start], -start))
    return tuple(range(best, best + length))


def _distance(before: Tensor, after: Tensor) -> float:
    check_pair(before, after)
    angles = torch.arccos(row_cosine(before.double(), after.double())) / math.pi
    return float(angles.mean())
