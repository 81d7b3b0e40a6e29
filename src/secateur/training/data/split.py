"""Windows to measure on, apart from those to train on."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from secateur.errors import SecateurError
from secateur.training.data.training_data import TrainingData
from secateur.training.data.windows import WindowDataset

_STRETCHES = 8
"""Held-out text comes from about so many places: one place might be one book."""


def hold_out(
    data: TrainingData, *, num_windows: int, seed: int = 0
) -> tuple[TrainingData, TrainingData]:
    """Part windows into those to train on and those to measure on.

    No window is in both and none overlap. Plain text is held out in a few contiguous stretches
    spread over the whole, so that hardly a document is in both; of conversations, whose windows
    have nothing in common, single windows are held out.

    Args:
        data: at least two windows, not streamed.
        num_windows: to hold out; at least 1, and fewer than there are.
        seed: of the draw.

    Returns:
        the windows to train on and the windows held out, both in their old order.

    Raises:
        SecateurError: nothing would be left on one side, or the data is streamed.
    """
    dataset = _stored(data)
    if not 1 <= num_windows < data.num_windows:
        raise SecateurError(
            f"expected to hold out at least 1 and fewer than all of {data.num_windows} windows, "
            f"got {num_windows}"
        )
    stretches = num_windows if dataset.stored.has_examples else min(_STRETCHES, num_windows)
    held_out = _draw(data.num_windows, num_windows, stretches, seed)
    chosen = set(held_out)
    trained = [row for row in range(data.num_windows) if row not in chosen]
    return _part(data, dataset, trained), _part(data, dataset, held_out)


def spread(data: TrainingData, num_windows: int) -> TrainingData:
    """At most `num_windows` windows, evenly spread over the data.

    Raises:
        SecateurError: `num_windows` is below 1, or the data is streamed.
    """
    dataset = _stored(data)
    if num_windows < 1:
        raise SecateurError(f"expected num_windows of at least 1, got {num_windows}")
    if num_windows >= data.num_windows:
        return data
    rows = [index * data.num_windows // num_windows for index in range(num_windows)]
    return _part(data, dataset, rows)


def _stored(data: TrainingData) -> WindowDataset:
    if not isinstance(data.dataset, WindowDataset):
        raise SecateurError(
            f"no windows can be held out of {data.source}: it is streamed; give a text of its "
            "own to measure on"
        )
    return data.dataset


def _draw(available: int, count: int, stretches: int, seed: int) -> list[int]:
    """`count` of `available` rows in runs, one in each equal part of what is not drawn."""
    random = Random(seed)
    left = available - count
    rows: list[int] = []
    for index in range(stretches):
        first, last = index * count // stretches, (index + 1) * count // stretches
        place = random.randint(index * left // stretches, (index + 1) * left // stretches)
        rows += range(first + place, last + place)
    return rows


def _part(data: TrainingData, dataset: WindowDataset, rows: Sequence[int]) -> TrainingData:
    part = dataset.subset(rows)
    digest = hashlib.sha256()
    num_tokens = num_loss_tokens = 0
    for row in range(len(part)):
        for array in part.raw(row):
            digest.update(array.tobytes())
        tokens, with_loss = part.count(row)
        num_tokens += tokens
        num_loss_tokens += with_loss
    return replace(
        data,
        dataset=part,
        num_windows=len(part),
        num_tokens=num_tokens,
        num_loss_tokens=num_loss_tokens,
        sha256=digest.hexdigest(),
    )
