"""The drop_blocks stage: measure Block Influence in one pass over the blocks, drop the least."""

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import nn

from secateur.calibration.inputs import BlockInputs
from secateur.depth.block_influence import BlockInfluence, least_influential
from secateur.depth.drop import drop_blocks
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.device import on_device
from secateur.progress import Progress
from secateur.recipe import DropBlocksStage
from secateur.report.record import DropRecord


def check_drop_stage(stage: DropBlocksStage, num_blocks: int) -> None:
    """Raise SecateurError if the stage asks for blocks that are not there, or for all of them."""
    wrong = [block for block in stage.blocks if block >= num_blocks]
    if wrong:
        raise SecateurError(
            f"drop_blocks names the blocks {wrong}, but the model has blocks 0 to {num_blocks - 1}"
        )
    count = stage.count or len(stage.blocks)
    if count >= num_blocks:
        raise SecateurError(
            f"drop_blocks would remove {count} of {num_blocks} blocks; at least one must stay"
        )


def measure_block_influence(
    blocks: BlockList, inputs: BlockInputs, device: torch.device, progress: Progress
) -> tuple[float, ...]:
    """Block Influence of every block: 1 - mean cosine of its input and output, per token, fp32.

    The last block is measured before the final norm. ShortGPT (arXiv 2403.03853).

    Args:
        blocks: of the model.
        inputs: of block 0, overwritten.
        device: where blocks run.
        progress: told after each block.
    """
    progress.begin("Block Influence", len(blocks))
    influences = []
    for index, block in enumerate(blocks.modules):
        influence = BlockInfluence()
        with on_device(block, device):
            for hidden, output in zip(inputs.hidden, inputs.stream(block, index), strict=True):
                influence.add(hidden, output)
                hidden.copy_(output)
        influences.append(influence.value())
        progress.advance(f"block {index}  influence {influences[-1]:.4f}")
    return tuple(influences)


def run_drop(
    model: nn.Module,
    blocks: BlockList,
    stage: DropBlocksStage,
    inputs: BlockInputs | None,
    device: torch.device,
    progress: Progress,
) -> DropRecord:
    """Drop blocks from the model in place.

    Args:
        model: the model.
        blocks: its blocks.
        stage: which or how many.
        inputs: of block 0; None where the stage names its blocks.
        device: where blocks run.
        progress: told after each block.
    """
    started = perf_counter()
    check_drop_stage(stage, len(blocks))
    influences: Sequence[float] = ()
    dropped = tuple(sorted(stage.blocks))
    if inputs is not None and stage.count is not None:
        influences = measure_block_influence(blocks, inputs, device, progress)
        dropped = least_influential(influences, stage.count)
    outcome = drop_blocks(model, blocks, dropped)
    return DropRecord(
        criterion=stage.criterion if influences else "named in the recipe",
        block_influence=tuple(influences),
        dropped=dropped,
        warnings=outcome.warnings,
        seconds=perf_counter() - started,
    )
