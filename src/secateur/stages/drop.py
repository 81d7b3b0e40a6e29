"""The drop_blocks stage: measure what each block does, and take out the least of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn

from secateur.depth.config import kept_blocks
from secateur.depth.drop import drop_blocks, rehearse_drop
from secateur.depth.remove import remove_sublayers
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList
from secateur.models.sublayers import Part, Sublayers
from secateur.progress import Progress
from secateur.recipe import DropBlocksStage
from secateur.report.record import DropRecord
from secateur.stages.drop_choice import DropChoice, choose_blocks, trace_losses
from secateur.stages.drop_plan import candidates, check_drop_stage, check_sublayers, part_of
from secateur.stages.drop_walk import DropCalibration, Walk


def run_drop(
    model: nn.Module,
    blocks: BlockList,
    stage: DropBlocksStage,
    calibration: DropCalibration | None,
    probe: Tensor,
    device: torch.device,
    progress: Progress,
) -> DropRecord:
    """Drop blocks, or a part of blocks, from the model in place.

    Args:
        model: in evaluation mode.
        blocks: its blocks.
        stage: which or how many.
        calibration: the tokens to measure on; None where nothing is measured.
        probe: int64 [1, length], a few tokens to find the parts of blocks by.
        device: where blocks run.
        progress: told after each block.

    Raises:
        SecateurError: the stage does not fit the model, which is unchanged then.
    """
    started = perf_counter()
    check_drop_stage(stage, len(blocks))
    part = part_of(stage)
    sublayers = check_sublayers(model, blocks, stage, probe) if part is not None else ()
    allowed = candidates(stage, len(blocks), sublayers)
    choice = DropChoice((), tuple(sorted(stage.blocks)), ())
    if calibration is not None:
        walk = Walk(model, blocks, calibration, device, part, sublayers)
        if stage.count is not None:
            choice = choose_blocks(walk, stage, allowed, progress)
        if stage.trace_loss:
            choice = replace(choice, losses=trace_losses(walk, choice.order, progress))
    elif stage.needs_calibration:
        raise SecateurError("expected calibration tokens to measure blocks on, got none")
    taken = _take_out(model, blocks, choice.order, part, sublayers)
    measured = choice.rounds[0].scores if choice.rounds else ()
    is_influence = stage.criterion == "block_influence" and part is None
    return DropRecord(
        criterion=stage.criterion if choice.rounds else "named in the recipe",
        block_influence=tuple(s for s in measured if s is not None) if is_influence else (),
        dropped=tuple(sorted(choice.order)),
        warnings=taken.warnings,
        seconds=perf_counter() - started,
        granularity=stage.granularity,
        rounds=choice.rounds,
        losses=choice.losses,
        protected=() if stage.blocks else _protected(stage, len(blocks)),
        removed=taken.removed,
        emptied=taken.emptied,
    )


def _protected(stage: DropBlocksStage, num_blocks: int) -> tuple[int, ...]:
    last = num_blocks - stage.protect_last
    return tuple(i for i in range(num_blocks) if i < stage.protect_first or i >= last)


@dataclass(frozen=True)
class _TakenOut:
    removed: tuple[str, ...]
    emptied: tuple[int, ...]
    warnings: tuple[str, ...]


def _take_out(
    model: nn.Module,
    blocks: BlockList,
    order: Sequence[int],
    part: Part | None,
    sublayers: Sequence[Sublayers],
) -> _TakenOut:
    """Change the model; a block that has neither part left goes as a whole."""
    if part is None:
        return _TakenOut((), (), drop_blocks(model, blocks, sorted(order)).warnings)
    other: Part = "mlp" if part == "attention" else "attention"
    emptied = tuple(i for i in sorted(order) if sublayers[i].part(other) is None)
    kept_blocks(emptied, len(blocks))
    if emptied:
        rehearse_drop(model, blocks, emptied)
    removed = remove_sublayers(blocks, {index: sublayers[index] for index in order}, part)
    gone = tuple(f"{blocks.block_name(index)}." for index in emptied)
    warnings = drop_blocks(model, blocks, emptied).warnings
    if emptied:
        warnings = (
            f"blocks {list(emptied)} had neither attention nor MLP left and were dropped whole",
            *warnings,
        )
    staying = tuple(name for name in removed if not name.startswith(gone))
    return _TakenOut(staying, emptied, warnings)
