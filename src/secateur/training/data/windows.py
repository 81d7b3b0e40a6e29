"""The map-style dataset: windows read from memory-mapped files as they are asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from secateur.training.data.stored import LOSS_FILE, STARTS_FILE, TOKENS_FILE, StoredWindows

NO_LABEL = -100


def training_item(
    tokens: NDArray[Any], loss: NDArray[np.bool_] | None, starts: NDArray[np.bool_] | None
) -> dict[str, Tensor]:
    """A window as a model takes it: `input_ids`, `labels` and, with `starts`, `position_ids`.

    Args:
        tokens: ids [length] of any integer type.
        loss: [length], where labels stand; None: everywhere.
        starts: [length], where positions begin anew; None: nowhere but at the beginning.
    """
    ids = torch.from_numpy(tokens.astype(np.int64))
    labels = ids.clone()
    if loss is not None:
        labels[torch.from_numpy(~loss)] = NO_LABEL
    item = {"input_ids": ids, "labels": labels}
    if starts is not None:
        place = np.arange(len(tokens))
        first = np.maximum.accumulate(np.where(starts, place, 0))
        item["position_ids"] = torch.from_numpy(place - first)
    return item


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Stored windows, all or some.

    Args:
        folder: where they are stored.
        stored: what is stored there.
        rows: which windows, in this order; None: all.
    """

    def __init__(
        self, folder: Path, stored: StoredWindows, rows: Sequence[int] | None = None
    ) -> None:
        self.folder = folder
        self.stored = stored
        self.rows = range(stored.num_windows) if rows is None else rows
        self._files: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        starts = self._bits(STARTS_FILE, row) if self.stored.is_packed else None
        return training_item(self._file(TOKENS_FILE)[row], self._bits(LOSS_FILE, row), starts)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself: a pickled map would be a copy of all tokens.
        return {**vars(self), "_files": {}}

    def subset(self, rows: Sequence[int]) -> "WindowDataset":
        """Some of these windows."""
        return WindowDataset(self.folder, self.stored, [self.rows[row] for row in rows])

    def raw(self, row: int) -> list[NDArray[Any]]:
        """What is stored of the window at `row` of this dataset: tokens, then masks if any."""
        return [self._file(name)[self.rows[row]] for name in self.stored.arrays]

    def count(self, row: int) -> tuple[int, int]:
        """Tokens of the window at `row` without padding, and those with a label."""
        length = self.stored.max_seq_length
        loss = self._bits(LOSS_FILE, self.rows[row])
        starts = self._bits(STARTS_FILE, self.rows[row])
        if loss is None or starts is None:
            return length, length
        # Every example has a token with loss, so a last stretch without one is padding.
        last = int(np.flatnonzero(starts)[-1])
        return (length if loss[last:].any() else last), int(loss.sum())

    def _bits(self, name: str, row: int) -> NDArray[np.bool_] | None:
        if name not in self.stored.arrays:
            return None
        packed = self._file(name)[row]
        return np.unpackbits(packed, count=self.stored.max_seq_length).astype(bool)

    def _file(self, name: str) -> NDArray[Any]:
        if name not in self._files:
            kind, shape = self.stored.arrays[name]
            self._files[name] = np.memmap(self.folder / name, dtype=kind, mode="r", shape=shape)
        return self._files[name]
