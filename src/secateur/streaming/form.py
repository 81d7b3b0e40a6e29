"""The form of a block: dense as it is worked on, compressed as it is written and read back."""

from typing import Any

from secateur.integrations.layer_specs import CompactLayers
from secateur.models.blocks import BlockList
from secateur.models.swap import compressed_modules, convert_sparse24, pack_layers, to_dense
from secateur.streaming.skeleton import release


def compress_block(model: Any, blocks: BlockList, index: int) -> None:
    """Make compressed layers of all linear layers of a block, with its weights, that are 2:4."""
    convert_sparse24(model, within=blocks.block_name(index))


def layers_of_block(model: Any, blocks: BlockList, index: int) -> CompactLayers:
    """The compressed layers that a block holds, with or without their weights."""
    if not compressed_modules(blocks.modules[index]):
        # Told without a look at the whole model, which has a thousand modules.
        return CompactLayers({})
    return CompactLayers.of(model).within(blocks.block_name(index))


def as_worked_on(model: Any, blocks: BlockList, index: int, layers: CompactLayers) -> None:
    """Give layers of a block, as they were read, the form in which the stage ran the block on.

    2:4 layers were dense and become dense again, bit for bit; those beside factors were packed.
    """
    to_dense(model, [name for name, spec in layers.specs.items() if spec.kind == "sparse24"])
    pack_layers(blocks.modules[index])


def forget_block(
    model: Any, blocks: BlockList, index: int, layers: CompactLayers | None = None
) -> None:
    """Forget a block's weights; what remains can be filled with those that were written.

    Args:
        model: whose block it is.
        blocks: of the model.
        index: of the block.
        layers: that it was written with; by default those that it holds.
    """
    block = blocks.modules[index]
    release(block.modules())
    (layers or layers_of_block(model, blocks, index)).build_in(model)
