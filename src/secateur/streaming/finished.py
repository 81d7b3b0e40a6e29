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
from secateur.streaming.host_copies import HostCopies
from secateur.streaming.job import WEIGHTS_FOLDER, write_aside
from secateur.streaming.shards import ShardPlan, read_shard, saved_form, write_shard

WRITERS = 2
"""Beside the work on a GPU: while one flushes, or reads what it wrote, the other can write."""


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

    A context manager: at its end everything is written.
    """

    def __init__(
        self, job: Path, model: Any, blocks: BlockList, shards: ShardPlan, writers: int = 0
    ) -> None:
        """Get ready.

        Args:
            job: the folder that `open_job` gave.
            model: whose blocks are written.
            blocks: of the model.
            shards: which file holds what.
            writers: so many blocks are written beside the work, each from a copy on the host.
        """
        self._job = job
        self._model = model
        self._blocks = blocks
        self._shards = shards
        self._sound: dict[int, bool] = {}
        self._writers = ThreadPoolExecutor(writers) if writers else None
        self._copies = [HostCopies() for _ in range(writers)]
        """That nothing is being written from."""
        self._pending: dict[int, tuple[Future[None], HostCopies]] = {}
        """By block, oldest first."""

    def __enter__(self) -> "BlockJournal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writers is not None:
            self._writers.shutdown()
        if kind is None:
            self._settle()
        self._copies.clear()

    def is_finished(self, index: int) -> bool:
        """Whether a block is there, with the weights that were written; not to be asked of one
        that is being written."""
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
        module = self._blocks.modules[index]
        name = self._blocks.block_name(index)
        tensors = {f"{name}.{own}": tensor for own, tensor in module.state_dict().items()}
        zeros = num_zeros(module.parameters())

        def write(saved: dict[str, Tensor]) -> None:
            digest = write_shard(self._job / WEIGHTS_FOLDER, self._shards.block_file(index), saved)
            entry = FinishedBlock(tuple(layers), block, zeros, tuple(together), digest)
            write_aside(self._entry(index), json.dumps(to_plain(entry)))
            self._sound[index] = True

        if self._writers is None:
            write(saved_form(self._model, tensors))
            return
        if not self._copies:
            self._settle_oldest()
        copies = self._copies.pop()
        saved = saved_form(self._model, tensors, copies)
        self._pending[index] = self._writers.submit(write, saved), copies

    def _settle(self) -> None:
        """Wait for what is being written.

        Raises:
            OutOfSpaceError, VerificationError: as `write_shard`, whose fault comes out here.
        """
        while self._pending:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        writing, copies = self._pending.pop(next(iter(self._pending)))
        self._copies.append(copies)
        writing.result()

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 by file name of all blocks, which are finished."""
        files = {i: self._shards.block_file(i) for i in range(len(self._blocks))}
        return {name: self._read(index).sha256 for index, name in files.items()}

    def num_zeros(self) -> int:
        """In the parameters of all blocks, which are finished."""
        return sum(self._read(index).num_zeros for index in range(len(self._blocks)))

    def _shard(self, index: int) -> Path:
        return self._job / WEIGHTS_FOLDER / self._shards.block_file(index)

    def _entry(self, index: int) -> Path:
        return self._job / f"block-{index:05d}.json"

    def _read(self, index: int) -> FinishedBlock:
        return from_plain(FinishedBlock, read_json(self._entry(index)))
