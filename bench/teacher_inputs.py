"""An experiment: the block's teacher sees what the dense model would give it, not what the pruned
blocks before it do, so that each block also makes up for the errors of those before.

The prune stage tunes against the dense block on the pruned inputs, as Wanda++ does. This goes
through the same steps (ADMM's mask and weights, then the regional optimizer) with either.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import TOKENS_PER_BATCH, BlockInputs, capture_inputs
from secateur.calibration.observe import observed
from secateur.calibration.statistics import InputStatistics
from secateur.calibration.tokens import CalibrationTokens
from secateur.mask import select_grouped
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.sites import WeightSite
from secateur.models.trace import trace_blocks
from secateur.reconstruct import (
    BlockSamples,
    ReconstructionSettings,
    master_weights,
    optimize,
    stored_targets,
)
from secateur.stages.prune_parameters import parameter_masks
from secateur.update import admm

TeacherInputs = Literal["pruned", "dense"]


def prune_with_teacher(
    dense: Any, tokens: CalibrationTokens, sees: TeacherInputs, settings: ReconstructionSettings
) -> Any:
    """A copy of a dense model pruned to 2:4, every block tuned against a teacher.

    Args:
        dense: the model.
        tokens: to calibrate on.
        sees: what enters the teacher.
        settings: of the optimizer, the same for every block.
    """
    student, teacher = deepcopy(dense), deepcopy(dense)
    inventory, teachers = take_inventory(student), take_inventory(teacher).blocks.modules
    inputs, wanted = _entering(student, inventory, tokens), _entering(student, inventory, tokens)
    for index, block in enumerate(inventory.blocks.modules):
        entering = wanted if sees == "dense" else inputs
        entering.run_block(teachers[index], index)
        targets = [output.clone() for output in entering.outputs]
        masks = _prune(block, index, inventory.sites[index], inputs)
        samples = BlockSamples(inputs.hidden, tuple(calls[index] for calls in inputs.calls))
        with master_weights(block, masks):
            optimize(block, stored_targets(targets, samples), samples, settings, masks=masks)
        inputs.run_block(block, index)
        _move_on(inputs.hidden, inputs.outputs)
        if sees == "dense":
            _move_on(wanted.hidden, targets)
    return student


def _entering(model: nn.Module, inventory: Inventory, tokens: CalibrationTokens) -> BlockInputs:
    trace = trace_blocks(model, inventory.blocks, {}, tokens.batches(TOKENS_PER_BATCH)[0][:1, :8])
    cpu = torch.device("cpu")
    return capture_inputs(model, inventory.blocks, trace, tokens, TOKENS_PER_BATCH, cpu)


def _prune(
    block: nn.Module, index: int, sites: Sequence[WeightSite], inputs: BlockInputs
) -> dict[str, Tensor]:
    """Masks by parameter name; the weights are ADMM's."""
    cpu = torch.device("cpu")
    seen = {
        site.name: InputStatistics(
            site.shape[1], with_hessian=True, num_batches=len(inputs), device=cpu
        )
        for site in sites
    }
    with observed(sites, {name: statistics.add for name, statistics in seen.items()}):
        for _ in inputs.stream(block, index):
            pass
    masks = []
    for site in sites:
        hessian = seen[site.name].hessian(inputs.num_samples)
        weights, mask = admm(site.weight.float(), hessian, lambda s, _: select_grouped(s, 2, 4))
        site.weight.copy_(weights)
        masks.append((site, mask))
    return parameter_masks(block, masks)


def _move_on(hidden: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    for entering, output in zip(hidden, outputs, strict=True):
        entering.copy_(output)
