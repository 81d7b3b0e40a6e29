"""Weights of one block at a time, from safetensors slices into a model on the meta device."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from secateur.checkpoint.files import tensor_files
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.measure import require_finite
from secateur.streaming.host_copies import HostCopies
from secateur.streaming.skeleton import outside_blocks

Tensors = dict[str, Tensor]

Held = Literal["copied", "reused", "mapped"]
"""`copied`: in memory of their own. `reused`: blocks in memory that later ones overwrite.
`mapped`: as pages of the files, which cost nothing until they are used."""

# Pages of a file count as resident while it is open.
_MOST_MAPPED_BYTES = 8 << 20


class BlockSource:
    """Reads the blocks of a checkpoint folder, the next one while the last one is in use."""

    def __init__(self, folder: Path, model: Any, blocks: BlockList, held: Held = "copied") -> None:
        """Find out which tensors belong to which block.

        Args:
            folder: with safetensors files.
            model: built from the folder's configuration, parameters on the meta device.
            blocks: of the model.
            held: how weights are held in memory.

        Raises:
            SecateurError: a block has no tensors in the folder.
        """
        self._model = model
        self._blocks = blocks
        self._held = held
        self._unused: list[HostCopies] = []
        self._in_use = HostCopies()
        self._files = tensor_files(folder)
        self._mapping = get_model_conversion_mapping(model)
        self._names = _by_block(self._named_in_model(self._files), blocks)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
        self._ahead: dict[int, tuple[Future[Tensors], HostCopies]] = {}

    def load_block(self, index: int, then: int | None = None) -> None:
        """Fill one block, with whatever numbers there are; the one before must be forgotten.

        Args:
            index: of the block.
            then: the block that will be asked for next; it is read while this one is in use.

        Raises:
            SecateurError: the checkpoint does not fill the block.
        """
        self._unused.append(self._in_use)
        begun = self._ahead.pop(index) if index in self._ahead else self._begin(index)
        reading, self._in_use = begun
        tensors = reading.result()
        if then is not None and then not in self._ahead:
            self._ahead[then] = self._begin(then)
        self._fill(tensors)
        _require_filled(self._blocks.modules[index], self._blocks.block_name(index))

    def fill_block(self, index: int, tensors: Tensors) -> None:
        """Fill one block with tensors that are named as in a checkpoint."""
        self._fill(tensors)
        _require_filled(self._blocks.modules[index], self._blocks.block_name(index))

    def load_rest(self) -> None:
        """Fill what belongs to no block: embedding, final norm, head.

        Raises:
            SecateurError: the checkpoint lacks some of it, or its weights are not finite.
        """
        self._fill(self._read(self._names[None], None))
        self._model.tie_weights()
        for name, parameter in outside_blocks(self._model, self._blocks).items():
            _require_one(name, parameter)
            require_finite(name, parameter)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _named_in_model(self, names: Iterable[str]) -> dict[str, str]:
        """Names of tensors in the files -> what transformers calls them in the model."""
        # Anew: some note what they have renamed, and those kept rename once more when loading.
        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if not isinstance(entry, WeightRenaming)]
        prefix, known = self._model.base_model_prefix, self._model.state_dict()
        return {
            name: rename_source_key(name, renamings, converters, prefix, known)[0] for name in names
        }

    def _begin(self, index: int) -> tuple[Future[Tensors], HostCopies]:
        """Read a block in the background; also where it is copied to, if that is used again."""
        copies = self._unused.pop() if self._unused else HostCopies()
        given = copies if self._held == "reused" else None
        return self._pool.submit(self._read, self._names[index], given), copies

    def _read(self, names: Iterable[str], copies: HostCopies | None) -> Tensors:
        """Tensors as they are on disk; unless they are `mapped`, no page of a file stays mapped."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name], []).append(name)
        tensors: Tensors = {}
        for path, wanted in by_file.items():
            while wanted:
                mapped = 0
                with safe_open(path, framework="pt") as file:
                    while wanted and mapped < _MOST_MAPPED_BYTES:
                        name = wanted.pop(0)
                        tensor = file.get_tensor(name)
                        if self._held == "mapped":
                            tensors[name] = tensor
                            continue
                        mapped += tensor.nbytes
                        tensors[name] = (
                            copies.copy(len(tensors), tensor) if copies else tensor.clone()
                        )
        return tensors

    def _fill(self, tensors: Tensors) -> None:
        """Put tensors into the model, renamed and fused as transformers does it."""
        dtype = next(self._model.parameters()).dtype
        config = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=self._model._get_dtype_plan(dtype),
            weight_mapping=self._mapping,
        )
        info, _ = convert_and_load_state_dict_in_model(self._model, tensors, config)
        # Buffers of old checkpoints that models compute today are forgiven, as by transformers.
        self._model._adjust_missing_and_unexpected_keys(info)
        faults = [*info.unexpected_keys, *info.mismatched_keys, *info.conversion_errors]
        if faults:
            raise SecateurError(
                "the checkpoint holds what its config does not ask for: "
                f"{len(faults)} tensors, such as {faults[0]}"
            )


def _by_block(in_model: Mapping[str, str], blocks: BlockList) -> dict[int | None, list[str]]:
    """Names of tensors by block; None holds those of no block.

    What a model sees by may have a list of as many layers, under the same name in another place.
    """
    list_name = blocks.name.rpartition(".")[2]
    place = re.compile(rf"{re.escape(blocks.name)}\.(\d+)\.")
    names: dict[int | None, list[str]] = {None: []} | {index: [] for index in range(len(blocks))}
    for name, renamed in in_model.items():
        found = place.match(renamed)
        index = int(found.group(1)) if found else None
        names[index if index in names else None].append(name)
    empty = [index for index, listed in names.items() if index is not None and not listed]
    if empty:
        raise SecateurError(
            f"expected tensors named ...{list_name}.{empty[0]}... for "
            f"{blocks.block_name(empty[0])}, but the checkpoint has none; it cannot be read block "
            "by block: compress it without streaming"
        )
    return names


def _require_filled(block: nn.Module, name: str) -> None:
    for own, tensor in (*block.named_parameters(), *block.named_buffers()):
        _require_one(f"{name}.{own}", tensor)


def _require_one(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise SecateurError(
            f"{name} cannot be read from the checkpoint block by block; if the model loads as a "
            "whole, compress it without streaming"
        )


def parameter_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes that these take or, on the meta device, would take."""
    return sum(item.numel() * item.element_size() for item in parameters)
