"""Finished blocks of a streaming job on disk: weights first, then the entry that counts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.files import read_json
from secateur.models.blocks import BlockList
from secateur.models.measure import num_zeros
from secateur.plain import from_plain, to_plain
from secateur.report.record import BlockRecord, LayerRecord
from secateur.streaming.job import WEIGHTS_FOLDER, write_aside
from secateur.streaming.shards import ShardPlan, read_shard, saved_form, write_shard


@dataclass(frozen=True)
class FinishedBlock:
    """What is known of a block that was pruned."""

    layers: tuple[LayerRecord, ...]
    block: BlockRecord
    num_zeros: int
    """Among all of its parameters."""


class BlockJournal:
    """Writes and reads the finished blocks of a job; see `stages.prune.FinishedBlocks`."""

    def __init__(self, job: Path, model: Any, blocks: BlockList, shards: ShardPlan) -> None:
        """`job` is the folder that `open_job` gave."""
        self._job = job
        self._model = model
        self._blocks = blocks
        self._shards = shards

    def is_finished(self, index: int) -> bool:
        """Whether a block is there."""
        return self._entry(index).is_file() and self._shard(index).is_file()

    def read(self, index: int) -> tuple[list[LayerRecord], BlockRecord] | None:
        """What was done to a block; None if it is not pruned yet."""
        if not self.is_finished(index):
            return None
        entry = self._read(index)
        return list(entry.layers), entry.block

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Weights of a finished block, named as in a checkpoint."""
        return read_shard(self._shard(index))

    def save(self, index: int, layers: Sequence[LayerRecord], block: BlockRecord) -> None:
        """Write the block as it is in the model now."""
        module = self._blocks.modules[index]
        name = self._blocks.block_name(index)
        tensors = {f"{name}.{own}": tensor for own, tensor in module.state_dict().items()}
        saved = saved_form(self._model, tensors)
        write_shard(self._job / WEIGHTS_FOLDER, self._shards.block_file(index), saved)
        entry = FinishedBlock(tuple(layers), block, num_zeros(module.parameters()))
        write_aside(self._entry(index), json.dumps(to_plain(entry)))

    def num_zeros(self) -> int:
        """In the parameters of all blocks, which are finished."""
        return sum(self._read(index).num_zeros for index in range(len(self._blocks)))

    def _shard(self, index: int) -> Path:
        return self._job / WEIGHTS_FOLDER / self._shards.block_file(index)

    def _entry(self, index: int) -> Path:
        return self._job / f"block-{index:05d}.json"

    def _read(self, index: int) -> FinishedBlock:
        return from_plain(FinishedBlock, read_json(self._entry(index)))
