"""The rank of every matrix out of one budget of parameters."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch

from secateur.calibration.inputs import BlockInputs, in_smaller_batches
from secateur.lowrank import (
    Cholesky,
    Spectrum,
    allocate_ranks,
    exact_svd,
    stack_rows,
    whitened_svd,
)
from secateur.models.blocks import BlockList
from secateur.models.trace import Trace
from secateur.progress import Progress
from secateur.recipe import FactorStage
from secateur.stages.factor_group import FactorGroup, input_root
from secateur.stages.factor_importance import Importance
from secateur.stages.factor_statistics import collect_moments
from secateur.stages.factor_weights import weights_of
from secateur_kernels.layouts.low_rank import RANK_STEP

Groups = Sequence[Sequence[FactorGroup]]
OpenBlock = Callable[[int], AbstractContextManager[None]]


def ranks_for_budget(
    stage: FactorStage, groups: Groups, spectra: Sequence[Spectrum]
) -> dict[str, int | None]:
    """Ranks by group name; None where a matrix stays dense because no rank pays.

    Args:
        stage: with a budget.
        groups: by block.
        spectra: of all groups.

    Raises:
        SecateurError: the budget is too small for the lowest rank everywhere.
    """
    assert stage.budget is not None
    flat = [group for block in groups for group in block]
    stored = sum(rows * columns for rows, columns in (group.shape for group in flat))
    budget = int((1.0 - stage.budget) * stored)
    return dict(allocate_ranks(spectra, budget, RANK_STEP).ranks)


def weight_spectra(groups: Groups, opened: OpenBlock) -> list[Spectrum]:
    """Singular values of the weights themselves, by block; `opened` as of `BlockFactorer`."""
    spectra: list[Spectrum] = []
    for index, block in enumerate(groups):
        with opened(index):
            spectra += [
                Spectrum(group.name, group.shape, exact_svd(stack_rows(group.weights())).values)
                for group in block
            ]
    return spectra


def output_spectra(
    blocks: BlockList,
    groups: Groups,
    inputs: BlockInputs,
    trace: Trace,
    stage: FactorStage,
    importance: Mapping[str, Importance] | None,
    device: torch.device,
    progress: Progress,
    opened: OpenBlock,
) -> list[Spectrum]:
    """Singular values in the metric of the outputs, from one pass over the dense model.

    Args:
        blocks: of the model.
        groups: by block.
        inputs: of block 0, overwritten.
        trace: how the model uses its blocks.
        stage: for its damping.
        importance: of each matrix's output for the loss; None: all count the same.
        device: where blocks run.
        progress: told after each block.
        opened: makes a block's weights be on the device while it is open.
    """
    progress.begin("singular values of outputs", len(blocks))
    spectra: list[Spectrum] = []
    streams: tuple[BlockInputs, ...] = (inputs,)
    for index, block in enumerate(blocks.modules):
        with opened(index):
            sites = [site for group in groups[index] for site in group.sites]
            collect = partial(collect_moments, block, index, sites, trace=trace, device=device)
            moments, streams = in_smaller_batches(collect, streams)
            for group in groups[index]:
                found = moments[group.name]
                root = input_root(group, found, inputs.num_samples, stage.damping)
                tokens = found.statistics.num_tokens / inputs.num_samples
                spectra.append(_spectrum(group, root, tokens, importance, stage.damping))
        streams[0].keep_outputs()
        progress.advance(f"block {index}")
    return spectra


def _spectrum(
    group: FactorGroup,
    root: Cholesky,
    tokens_a_sample: float,
    importance: Mapping[str, Importance] | None,
    damping: float,
) -> Spectrum:
    weights = weights_of(group.sites, group.weights(), root, importance, damping)
    values = whitened_svd(weights.stack(group.weights()), root).svd.values
    worth = weights.worth(float(values.square().sum()), tokens_a_sample)
    return Spectrum(group.name, group.shape, values, worth)


def ranks_by_group(plan_ranks: Mapping[str, int | None], groups: Groups) -> dict[str, int | None]:
    """The recipe's own ranks, by group: that of the first matrix stands for the stack."""
    return {group.name: plan_ranks[group.name] for block in groups for group in block}
