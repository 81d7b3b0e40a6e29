"""Finished blocks of a streaming job on disk: weights first, then the entry that counts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from secateur.checkpoint.files import read_json
from secateur.checkpoint.manifest import file_sha256
from secateur.errors import SecateurError
from secateur.integrations.layer_specs import CompactLayers
from secateur.models.blocks import BlockList
from secateur.models.measure import num_logical_zeros
from secateur.plain import from_plain, to_plain
from secateur.report.record import BlockRecord
from secateur.streaming.form import compress_block, layers_of_block
from secateur.streaming.host_copies import HostCopies
from secateur.streaming.job import WEIGHTS_FOLDER, write_aside
from secateur.streaming.shards import ShardPlan, read_shard, saved_form, write_shard

WRITERS = 2
"""Beside the work on a GPU: while one flushes, or reads what it wrote, the other can write."""

_RANKS_FILE = "ranks.json"

Layer = TypeVar("Layer")
"""The record of a matrix: each kind of stage has its own."""


@dataclass(frozen=True)
class _Ranks:
    ranks: dict[str, int | None]
    sha256: str
    """Of `ranks`."""


@dataclass(frozen=True)
class FinishedBlock:
    """What is known of a block that the stage is done with."""

    layers: tuple[Any, ...]
    """What was done to each matrix, as plain values."""
    block: BlockRecord
    compressed: dict[str, Any]
    """Its compressed layers, as a compact checkpoint lists them; empty where all are dense."""
    num_zeros: int
    """Among all of its parameters, what 2:4 removed included."""
    together: tuple[int, ...]
    """By batch, how many calibration samples were run together."""
    sha256: str
    """Of the weight file."""


class BlockJournal(Generic[Layer]):
    """Writes and reads the finished blocks of a job; see `stages.finished.FinishedBlocks`.

    A context manager: at its end everything is written.
    """

    def __init__(
        self,
        job: Path,
        model: Any,
        blocks: BlockList,
        shards: ShardPlan,
        writers: int,
        layer: type[Layer],
        compact: bool,
    ) -> None:
        """Get ready.

        Args:
            job: the folder that `open_job` gave.
            model: whose blocks are written.
            blocks: of the model.
            shards: which file holds what.
            writers: so many blocks are written beside the work, each from a copy on the host.
            layer: what `read` gives for each matrix.
            compact: linear layers that are 2:4 become compressed ones before they are written.
        """
        self._layer = layer
        self._compact = compact
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

    def __enter__(self) -> "BlockJournal[Layer]":
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

    def read(self, index: int) -> tuple[list[Layer], BlockRecord, list[int]] | None:
        """What was done to a block, in which batches; None if it is not finished."""
        if not self.is_finished(index):
            return None
        entry = self._read(index)
        layers = [from_plain(self._layer, layer) for layer in entry.layers]
        return layers, entry.block, list(entry.together)

    def layers(self, index: int) -> CompactLayers:
        """The compressed layers of a finished block."""
        compressed = self._read(index).compressed
        return CompactLayers.from_plain(**compressed) if compressed else CompactLayers({})

    def build_layers(self) -> None:
        """Have the model hold the compressed layers of all blocks, which are finished, without
        their weights."""
        for index in range(len(self._blocks)):
            self.layers(index).build_in(self._model)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Weights of a finished block, named as in a checkpoint."""
        return read_shard(self._shard(index))

    def save(
        self,
        index: int,
        layers: Sequence[Layer],
        block: BlockRecord,
        together: Sequence[int],
    ) -> None:
        """Write the block as it is in the model now, its layers compressed where they are to be."""
        if self._compact:
            compress_block(self._model, self._blocks, index)
        compressed = layers_of_block(self._model, self._blocks, index).to_plain()
        module = self._blocks.modules[index]
        name = self._blocks.block_name(index)
        tensors = {f"{name}.{own}": tensor for own, tensor in module.state_dict().items()}
        zeros = num_logical_zeros(module)

        def write(saved: dict[str, Tensor]) -> None:
            digest = write_shard(self._job / WEIGHTS_FOLDER, self._shards.block_file(index), saved)
            done = tuple(to_plain(layer) for layer in layers)
            entry = FinishedBlock(done, block, compressed, zeros, tuple(together), digest)
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

    def read_ranks(self) -> dict[str, int | None] | None:
        """As of `stages.finished.FinishedFactoring`.

        Raises:
            SecateurError: they are not those that were written. They cannot be settled anew, as
                blocks that are finished are no longer dense.
        """
        path = self._job / _RANKS_FILE
        if not path.is_file():
            return None
        saved = from_plain(_Ranks, read_json(path))
        if saved.sha256 != _digest(saved.ranks):
            raise SecateurError(
                f"{path} has other content than when it was written; delete {self._job} to start "
                "over"
            )
        return saved.ranks

    def save_ranks(self, ranks: Mapping[str, int | None]) -> None:
        """As of `stages.finished.FinishedFactoring`."""
        saved = _Ranks(dict(ranks), _digest(ranks))
        write_aside(self._job / _RANKS_FILE, json.dumps(to_plain(saved)))

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


def _digest(ranks: Mapping[str, int | None]) -> str:
    return hashlib.sha256(json.dumps(to_plain(ranks)).encode()).hexdigest()
