"""What a drop stage may take out of a model, settled and checked before any change."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secateur.depth.remove import rehearse_removal
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.replay import capture_batch
from secateur.models.sublayers import Part, Sublayers, find_sublayers
from secateur.models.trace import trace_blocks
from secateur.recipe import DropBlocksStage


def check_drop_stage(stage: DropBlocksStage, num_blocks: int) -> None:
    """Raise SecateurError if the stage asks for blocks that are not there, or for all of them."""
    wrong = [block for block in stage.blocks if block >= num_blocks]
    if wrong:
        raise SecateurError(
            f"drop_blocks names the blocks {wrong}, but the model has blocks 0 to {num_blocks - 1}"
        )
    count = stage.count or len(stage.blocks)
    if count >= num_blocks and stage.granularity == "block":
        raise SecateurError(
            f"drop_blocks would remove {count} of {num_blocks} blocks; at least one must stay"
        )
    allowed = num_blocks - stage.protect_first - stage.protect_last
    if not stage.blocks and count > allowed:
        raise SecateurError(
            f"drop_blocks would remove {count} of {num_blocks} blocks, but with the first "
            f"{stage.protect_first} and the last {stage.protect_last} protected only "
            f"{max(0, allowed)} may go"
        )


def candidates(
    stage: DropBlocksStage, num_blocks: int, sublayers: Sequence[Sublayers] = ()
) -> tuple[int, ...]:
    """The blocks that a stage may choose from, ascending.

    Args:
        stage: with a count.
        num_blocks: of the model as it is.
        sublayers: by block, where parts of blocks are to go: those that are gone are no choice.

    Raises:
        SecateurError: there are not enough.
    """
    part = stage.granularity
    allowed = tuple(
        index
        for index in range(stage.protect_first, num_blocks - stage.protect_last)
        if part == "block" or sublayers[index].part(part) is not None
    )
    if stage.count is not None and stage.count > len(allowed):
        raise SecateurError(
            f"drop_blocks would remove the {part} of {stage.count} blocks, but only "
            f"{len(allowed)} that may go still have one"
        )
    return allowed


def block_sublayers(
    model: nn.Module, blocks: BlockList, input_ids: Tensor
) -> tuple[Sublayers, ...]:
    """By block, its attention and its MLP, found by a run over a few tokens.

    Args:
        model: in evaluation mode.
        blocks: its blocks.
        input_ids: int64 [1, length].

    Raises:
        SecateurError: a block is not made of two such parts; names it.
    """
    trace = trace_blocks(model, blocks, {}, input_ids)
    batch = capture_batch(model, blocks, trace.output_forms, input_ids)
    hidden, found = batch.hidden, []
    for index, (block, call) in enumerate(zip(blocks.modules, batch.calls, strict=True)):
        run = partial(call, block)
        with torch.no_grad():
            try:
                found.append(find_sublayers(block, hidden, run))
            except SecateurError as error:
                raise SecateurError(f"{blocks.block_name(index)}: {error}") from None
            hidden = run(hidden)
    return tuple(found)


def check_sublayers(
    model: nn.Module, blocks: BlockList, stage: DropBlocksStage, input_ids: Tensor
) -> tuple[Sublayers, ...]:
    """What the blocks consist of, after rehearsals without the parts that may go, and all but one.

    Raises:
        SecateurError: as `block_sublayers`; named blocks lack the part; the model does not run
            without it.
    """
    found = block_sublayers(model, blocks, input_ids)
    part = part_of(stage)
    assert part is not None
    chosen = [index for index in stage.blocks if index < len(found)]
    gone = [index for index in chosen if found[index].part(part) is None]
    if gone:
        raise SecateurError(f"the {part} of blocks {gone} was removed before")
    there = {index: entry for index, entry in enumerate(found) if entry.part(part) is not None}
    rehearse_removal(model, blocks, there, part, input_ids)
    # Without any attention nothing depends on positions: one must be left to miss a lost count.
    all_but_one = dict(list(there.items())[:-1])
    rehearse_removal(model, blocks, all_but_one, part, input_ids)
    return found


def part_of(stage: DropBlocksStage) -> Part | None:
    """What goes of a block; None for the whole."""
    return None if stage.granularity == "block" else stage.granularity
