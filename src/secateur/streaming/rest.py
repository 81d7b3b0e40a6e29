"""What belongs to no block: written after the blocks, with the index of all weight files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.write import space_errors
from secateur.models.blocks import BlockList
from secateur.models.measure import num_zeros
from secateur.streaming.shards import ShardPlan, saved_form, write_index, write_shard
from secateur.streaming.skeleton import (
    modules_outside,
    outside_blocks,
    release,
    release_parameters,
)
from secateur.streaming.source import BlockSource


def write_rest(
    weights: Path,
    model: Any,
    blocks: BlockList,
    source: BlockSource,
    shards: ShardPlan,
    writers: int = 0,
) -> int:
    """Write embedding, final norm, head and the index; each is forgotten once it is written.

    Args:
        weights: folder that holds the files of all blocks.
        model: parameters on the meta device.
        blocks: of the model.
        source: of the weights.
        shards: which file holds what.
        writers: so many files are written at once; 0 and 1 are one by one.

    Returns:
        how many zeros they hold.

    Raises:
        SecateurError: the checkpoint lacks some of it, or it is not finite.
        OutOfSpaceError: the disk is full.
    """
    source.load_rest()
    parameters = outside_blocks(model, blocks)
    buffers = _buffers_outside(model, blocks)

    def write(number: int) -> int:
        group = {name: parameters.pop(name) for name in shards.rest[number]}
        tensors: dict[str, Tensor] = {**group, **(buffers if number == 0 else {})}
        write_shard(weights, shards.rest_file(number), saved_form(model, tensors))
        release_parameters(model, group.values())
        return num_zeros(group.values())

    with ThreadPoolExecutor(max(1, writers)) as pool:
        zeros = sum(pool.map(write, range(len(shards.rest))))
    release(modules_outside(model, blocks))
    files = [shards.rest_file(number) for number in range(len(shards.rest))]
    files += [shards.block_file(index) for index in range(len(blocks))]
    with space_errors(weights):
        write_index(weights, files)
    return zeros


def _buffers_outside(model: Any, blocks: BlockList) -> dict[str, Tensor]:
    """Saved buffers by name that belong to no block."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    inside = f"{blocks.name}."
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters and not name.startswith(inside)
    }
