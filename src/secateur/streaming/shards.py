"""Weight files of a checkpoint, written one by one and read back at once."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from secateur.checkpoint.files import INDEX_FILE
from secateur.checkpoint.manifest import file_sha256
from secateur.checkpoint.same_bits import same_bits
from secateur.checkpoint.write import space_errors
from secateur.errors import VerificationError
from secateur.models.blocks import BlockList
from secateur.streaming.host_copies import HostCopies
from secateur.streaming.job import flush_names
from secateur.streaming.skeleton import outside_blocks
from secateur.streaming.source import parameter_bytes


class ShardPlan:
    """Which file holds what: first what belongs to no block, then a file a block."""

    def __init__(self, model: nn.Module, blocks: BlockList) -> None:
        """From shapes alone; parameters may be on the meta device."""
        largest = max(parameter_bytes(block.parameters()) for block in blocks.modules)
        self.rest = tuple(_groups(outside_blocks(model, blocks), largest))
        self._total = len(self.rest) + len(blocks)

    def rest_file(self, group: int) -> str:
        """Name of the file of one group of `rest`."""
        return self._name(group + 1)

    def block_file(self, index: int) -> str:
        """Name of the file of one block."""
        return self._name(len(self.rest) + index + 1)

    def _name(self, number: int) -> str:
        return f"model-{number:05d}-of-{self._total:05d}.safetensors"


def _groups(parameters: dict[str, nn.Parameter], most_bytes: int) -> Iterator[tuple[str, ...]]:
    """Names in groups of at most so many bytes, but at least one name."""
    group: list[str] = []
    size = 0
    for name, parameter in parameters.items():
        more = parameter_bytes([parameter])
        if group and size + more > most_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield tuple(group)


def saved_form(
    model: Any, tensors: dict[str, Tensor], copies: HostCopies | None = None
) -> dict[str, Tensor]:
    """Tensors of a model under the names and in the shapes that its checkpoints use.

    Args:
        model: whose tensors they are, after they were read from a checkpoint.
        tensors: by name in the model.
        copies: where they are copied to; otherwise only what must be is copied.

    Returns:
        contiguous tensors on the CPU.
    """
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    kept = {name: tensor.detach() for name, tensor in tensors.items() if name not in ignored}
    saved = revert_weight_conversion(model, kept)
    if copies is not None:
        return copies.take(saved)
    return {name: tensor.cpu().contiguous() for name, tensor in saved.items()}


def write_shard(folder: Path, file_name: str, tensors: dict[str, Tensor]) -> str:
    """Write a weight file so that it is there whole or not at all, and read it back.

    Args:
        folder: of the checkpoint.
        file_name: in it.
        tensors: from `saved_form`.

    Returns:
        hex SHA-256 of the file.

    Raises:
        OutOfSpaceError: the disk is full.
        VerificationError: the file does not hold what was to be written.
    """
    aside = folder / f"{file_name}.partial"
    with space_errors(folder):
        # Tensors that share memory (slices of a fused one) are refused by safetensors.
        save_file(_apart(tensors), aside, metadata={"format": "pt"})
        # The file is read while it goes to the disk: both take time, of different parts.
        with ThreadPoolExecutor(2) as beside:
            flushed, digest = beside.submit(_flush, aside), beside.submit(file_sha256, aside)
            _require_written(aside, tensors)
        flushed.result()
        os.replace(aside, folder / file_name)
        flush_names(folder)
    return digest.result()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _require_written(path: Path, tensors: dict[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            if not same_bits(file.get_tensor(name), tensor):
                raise VerificationError(f"{name} is not the same after it was written")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def read_shard(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file, copied."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def write_index(folder: Path, file_names: Sequence[str]) -> None:
    """List which tensor is in which file, as transformers reads it."""
    weight_map: dict[str, str] = {}
    total = 0
    for file_name in file_names:
        with safe_open(folder / file_name, framework="pt") as file:
            weight_map |= dict.fromkeys(file.keys(), file_name)
        total += _tensor_bytes(folder / file_name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensor_bytes(path: Path) -> int:
    """What a weight file holds beside its header, whose length stands in the first eight bytes."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header
