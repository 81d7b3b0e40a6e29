"""Finished blocks of a streaming job on disk: weights first, then the entry that counts."""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.files import read_json
from secateur.checkpoint.manifest import file_sha256
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
    together: tuple[int, ...]
    """By batch, how many calibration samples were run together."""
    sha256: str
    """Of the weight file."""


class BlockJournal:
    """Writes and reads the finished blocks of a job; see `stages.prune.FinishedBlocks`.

    A context manager: at its end everything is written. With a writer beside the work a block is
    written while the next is computed, and one at most is waiting.
    """

    def __init__(
        self, job: Path, model: Any, blocks: BlockList, shards: ShardPlan, beside: bool = False
    ) -> None:
        """`job` is the folder that `open_job` gave; `beside`: write beside the work."""
        self._job = job
        self._model = model
        self._blocks = blocks
        self._shards = shards
        self._sound: dict[int, bool] = {}
        self._writer = ThreadPoolExecutor(1) if beside else None
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> "BlockJournal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.shutdown()
        if kind is None:
            self._settle()

    def is_finished(self, index: int) -> bool:
        """Whether a block is there, with the weights that were written."""
        if self._pending is not None and self._pending[0] == index:
            self._settle()
        if index not in self._sound:
            self._sound[index] = self._is_sound(index)
        return self._sound[index]

    def _is_sound(self, index: int) -> bool:
        entry, shard = self._entry(index), self._shard(index)
        if not (entry.is_file() and shard.is_file()):
            return False
        return self._read(index).sha256 == file_sha256(shard)

    def read(self, index: int) -> tuple[list[LayerRecord], BlockRecord, list[int]] | None:
        """What was done to a block, in which batches; None if it is not pruned yet."""
        if not self.is_finished(index):
            return None
        entry = self._read(index)
        return list(entry.layers), entry.block, list(entry.together)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Weights of a finished block, named as in a checkpoint."""
        return read_shard(self._shard(index))

    def save(
        self,
        index: int,
        layers: Sequence[LayerRecord],
        block: BlockRecord,
        together: Sequence[int],
    ) -> None:
        """Write the block as it is in the model now."""
        self._settle()
        module = self._blocks.modules[index]
        name = self._blocks.block_name(index)
        tensors = {f"{name}.{own}": tensor for own, tensor in module.state_dict().items()}
        zeros = num_zeros(module.parameters())
        saved = saved_form(self._model, tensors)

        def write(saved: dict[str, Tensor]) -> None:
            digest = write_shard(self._job / WEIGHTS_FOLDER, self._shards.block_file(index), saved)
            entry = FinishedBlock(tuple(layers), block, zeros, tuple(together), digest)
            write_aside(self._entry(index), json.dumps(to_plain(entry)))
            self._sound[index] = True

        if self._writer is None:
            write(saved)
            return
        # The module goes on without waiting: what was copied from a GPU is ours already.
        ours = {key: _apart_from(tensors, tensor) for key, tensor in saved.items()}
        self._pending = (index, self._writer.submit(write, ours))

    def _settle(self) -> None:
        """Wait for what is being written.

        Raises:
            OutOfSpaceError, VerificationError: as `write_shard`, whose fault comes out here.
        """
        if self._pending is not None:
            _, writing = self._pending
            self._pending = None
            writing.result()

    def num_zeros(self) -> int:
        """In the parameters of all blocks, which are finished."""
        return sum(self._read(index).num_zeros for index in range(len(self._blocks)))

    def _shard(self, index: int) -> Path:
        return self._job / WEIGHTS_FOLDER / self._shards.block_file(index)

    def _entry(self, index: int) -> Path:
        return self._job / f"block-{index:05d}.json"

    def _read(self, index: int) -> FinishedBlock:
        return from_plain(FinishedBlock, read_json(self._entry(index)))


def _apart_from(tensors: dict[str, Tensor], saved: Tensor) -> Tensor:
    """`saved`, in memory of its own."""
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    return saved.clone() if saved.untyped_storage().data_ptr() in places else saved
