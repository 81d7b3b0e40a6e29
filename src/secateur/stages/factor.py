"""The factor stage: ranks first, then block after block, each on what the ones before give it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs, in_smaller_batches, shortage_note
from secateur.calibration.statistics import RelativeError
from secateur.calibration.tokens import CalibrationTokens
from secateur.models.blocks import BlockList
from secateur.models.device import on_device
from secateur.models.matrix_types import is_fed
from secateur.models.sites import WeightSite
from secateur.models.trace import Trace
from secateur.progress import Progress
from secateur.recipe import FactorStage, ImportanceName
from secateur.report.record import BlockRecord, FactoredLayer, FactorRecord
from secateur.stages.factor_group import Factored, FactorGroup, factor_group, fit_dense, groups_of
from secateur.stages.factor_importance import Importance, measure_importance
from secateur.stages.factor_plan import FactorPlan, check_stacks
from secateur.stages.factor_ranks import (
    Groups,
    output_spectra,
    ranks_by_group,
    ranks_for_budget,
    weight_spectra,
)
from secateur.stages.factor_statistics import SiteMoments, collect_fed_moments, collect_moments
from secateur.stages.factor_write import write_factored
from secateur.stages.finished import FinishedFactoring

_NO_IMPORTANCE = (
    "importance {} could not be measured for all matrices (slices of fused experts, or no gradient "
    "reaches one): every whole output counts the same"
)
_NO_ROOM = (
    "importance directions does not fit in memory, which holds an fp32 [N, N] of every matrix: "
    "loss is used instead"
)
_NOT_WORTH = "stays dense: no rank below the break-even is worth its parameters"
_NOT_ASKED = "stays dense: a rank was asked of others only"
_FITTED = "stays dense, fitted to the inputs that the matrices before it now give"

EnterBlocks = Callable[[], tuple[BlockInputs | None, Trace | None]]


class BlockFactorer:
    """Runs one factor stage over a model's blocks."""

    def __init__(
        self,
        model: nn.Module,
        blocks: BlockList,
        stage: FactorStage,
        plan: FactorPlan,
        tokens: CalibrationTokens | None,
        device: torch.device,
        progress: Progress,
        opened: Callable[[int], AbstractContextManager[None]] | None = None,
        finished: FinishedFactoring | None = None,
    ) -> None:
        """Get ready.

        Args:
            model: whose blocks they are; its layers are replaced.
            blocks: of the model.
            stage: what to do.
            plan: of the stage, see `plan_factoring`.
            tokens: to calibrate on; None where the stage needs none.
            device: where blocks run.
            progress: told of every matrix.
            opened: makes a block's weights be on `device` while it is open; by default it is
                moved there and back.
            finished: blocks of an interrupted stage, which are only run through. What it needs of
                the model as a whole cannot be asked for then: see `whole_model_needs`.
        """
        self._opened = opened or (lambda index: on_device(blocks.modules[index], device))
        self._finished = finished
        self._model = model
        self._blocks = blocks
        self._stage = stage
        self._plan = plan
        self._tokens = tokens
        self._importance: dict[str, Importance] | None = None
        self._weighed_by: ImportanceName | None = None
        self._warnings: list[str] = list(plan.warnings)
        self._device = device
        self._progress = progress
        self._streams: tuple[BlockInputs, ...] = ()
        """What enters the block at hand: in the compressed model, and with dense targets also in
        the dense one. Empty without calibration."""
        self._whole: BlockInputs | None = None
        """The first of them in batches as they were given."""
        self._together: list[int] = []
        """Samples of every batch that there was memory for at once, in the block at hand."""

    def run(self, enter_blocks: EnterBlocks) -> FactorRecord:
        """Factor every block.

        Args:
            enter_blocks: gives fresh inputs of block 0 and the trace at each call; (None, None)
                without calibration tokens.
        """
        started = perf_counter()
        inputs, trace = enter_blocks()
        shared = trace.shared_inputs if trace else {}
        groups = [groups_of(sites, shared, self._stage.joint) for sites in self._plan.sites]
        stacks = [(group.name, group.shape) for block in groups for group in block]
        self._warnings += check_stacks(self._stage, stacks) if self._stage.joint else ()
        self._importance = self._measure_importance(self._stage.weighs_by)
        settled = self._finished.read_ranks() if self._finished else None
        ranks = self._ranks(groups, inputs, trace) if settled is None else settled
        if self._finished and settled is None:
            self._finished.save_ranks(ranks)
        if inputs is not None and self._ranks_by_outputs() and settled is None:
            # They went through all blocks. The old buffers go first: both pairs may not fit.
            del inputs
            inputs, _ = enter_blocks()
        dense_inputs = enter_blocks()[0] if self._wants_dense_stream() else None
        self._streams = tuple(s for s in (inputs, dense_inputs) if s is not None)
        self._whole = inputs
        self._progress.begin(f"factor ({self._stage.method})", sum(map(len, groups)))
        layers: list[FactoredLayer] = []
        records: list[BlockRecord] = []
        for index, block in enumerate(self._blocks.modules):
            done_before = self._finished.read(index) if self._finished else None
            if done_before is None:
                with self._opened(index):
                    new, record = self._factor_block(block, index, groups[index], ranks, trace)
                    if self._finished:
                        self._finished.save(index, new, record, self._together)
            else:
                new, record, together = done_before
                self._pass_through(block, index, groups[index], together)
            layers += new
            records.append(record)
        return FactorRecord(
            method=self._stage.method,
            budget=self._stage.budget,
            layers=tuple(layers),
            blocks=tuple(records),
            warnings=tuple(self._warnings),
            seconds=perf_counter() - started,
            importance=self._weighed_by,
            stored_dense=not self._stage.writes_factors,
        )

    def _pass_through(
        self, block: nn.Module, index: int, groups: list[FactorGroup], together: list[int]
    ) -> None:
        """Move hidden states through a block that is factored already, as they were moved then."""
        if self._streams and self._whole is not None:
            # A block that was missing before it may have been made anew in smaller batches.
            [now] = self._streams
            inputs = now if len(now) <= len(together) else self._whole
            self._streams = (inputs.in_batches(len(together)),)
            with self._opened(index):
                self._streams[0].pass_through(block, index, together)
        for _ in groups:
            self._progress.advance(f"block {index} was finished before")

    def _wants_dense_stream(self) -> bool:
        return self._stage.method == "svd-whitened" and self._stage.dense_targets

    def _ranks_by_outputs(self) -> bool:
        return self._stage.method == "svd-whitened" and self._stage.budget is not None

    def _measure_importance(self, kind: ImportanceName) -> dict[str, Importance] | None:
        stage = self._stage
        directions = kind == "directions"
        self._weighed_by = kind if _importance_counts(stage, kind) else None
        if self._weighed_by is None or kind == "output" or self._tokens is None:
            return None
        self._progress.begin("importance for the loss", 1)
        sites = [site for sites in self._plan.sites for site in sites]
        try:
            importance = measure_importance(
                self._model, sites, self._tokens, directions, stage.importance_samples
            )
        except torch.OutOfMemoryError:
            if not directions:
                raise
        else:
            self._progress.advance()
            if importance is None:
                self._warnings.append(_NO_IMPORTANCE.format(kind))
                self._weighed_by = "output"
            return importance
        # Only here is let go what did not fit: the error holds it.
        self._progress.advance("does not fit in memory")
        self._warnings.append(_NO_ROOM)
        return self._measure_importance("loss")

    def _ranks(
        self, groups: Groups, inputs: BlockInputs | None, trace: Trace | None
    ) -> Mapping[str, int | None]:
        stage = self._stage
        if stage.budget is None or stage.method == "sparse-plus-low-rank":
            return ranks_by_group(self._plan.ranks, groups)
        if not self._ranks_by_outputs():
            return ranks_for_budget(stage, groups, weight_spectra(groups, self._opened))
        assert inputs is not None
        assert trace is not None
        spectra = output_spectra(
            self._blocks,
            groups,
            inputs,
            trace,
            stage,
            self._importance,
            self._device,
            self._progress,
            self._opened,
        )
        return ranks_for_budget(stage, groups, spectra)

    def _factor_block(
        self,
        block: nn.Module,
        index: int,
        groups: list[FactorGroup],
        ranks: Mapping[str, int | None],
        trace: Trace | None,
    ) -> tuple[list[FactoredLayer], BlockRecord]:
        started = perf_counter()
        moments: Mapping[str, SiteMoments] = {}
        before = self._streams[0] if self._streams else None
        fed = self._fed(groups, ranks)
        others = [group for group in groups if group not in fed]
        if self._streams and trace is not None:
            collect = partial(
                collect_moments, block, index, _sites(others), trace=trace, device=self._device
            )
            moments, self._streams = in_smaller_batches(collect, self._streams)
        dense_block = copy.deepcopy(block) if fed else None
        layers = self._factor_groups(others, ranks, index, moments)
        if dense_block is not None:
            moments = self._watch_fed(block, dense_block, index, _sites(fed))
            layers += self._factor_groups(fed, ranks, index, moments)
        note = shortage_note(index, before, self._streams[0]) if before is not None else ""
        error = self._propagate(block, index) if self._streams else None
        seconds = perf_counter() - started
        return layers, BlockRecord(block=index, output_error=error, seconds=seconds, note=note)

    def _fed(
        self, groups: Sequence[FactorGroup], ranks: Mapping[str, int | None]
    ) -> list[FactorGroup]:
        """Those that are fitted to what the others of a block give; none if these stay dense."""
        found = [group for group in groups if self._stage.fits_in_turn and is_fed(group.name)]
        changed = any(ranks[group.name] is not None for group in groups if group not in found)
        return found if changed else []

    def _watch_fed(
        self, block: nn.Module, dense_block: nn.Module, index: int, sites: list[WeightSite]
    ) -> Mapping[str, SiteMoments]:
        name = self._blocks.block_name(index)
        collect = partial(
            collect_fed_moments,
            block,
            dense_block,
            index,
            sites,
            block_name=name,
            device=self._device,
        )
        moments, self._streams = in_smaller_batches(collect, self._streams)
        return moments

    def _factor_groups(
        self,
        groups: Sequence[FactorGroup],
        ranks: Mapping[str, int | None],
        index: int,
        moments: Mapping[str, SiteMoments],
    ) -> list[FactoredLayer]:
        samples = self._streams[0].num_samples if self._streams else 1
        layers = []
        for group in groups:
            layers += self._factor_group(group, ranks[group.name], index, moments, samples)
            self._progress.advance(f"block {index}  {group.name.split('.')[-1]}")
        return layers

    def _factor_group(
        self,
        group: FactorGroup,
        rank: int | None,
        index: int,
        moments: Mapping[str, SiteMoments],
        samples: int,
    ) -> list[FactoredLayer]:
        started = perf_counter()
        shared = moments.get(group.name)
        if rank is None:
            return self._leave_dense(group, index, shared, samples)
        factored = factor_group(group, rank, self._stage, shared, samples, self._importance)
        errors = [
            shared.output_error(site.weight, _rounded(part, site)) if shared else None
            for site, part in zip(group.sites, factored, strict=True)
        ]
        stored = write_factored(self._model, group, factored, self._stage)
        seconds = (perf_counter() - started) / len(group.sites)
        return [
            FactoredLayer(
                name=site.name,
                block=index,
                shape=site.shape,
                rank=rank,
                num_parameters=number,
                output_error=error,
                num_tokens=shared.statistics.num_tokens if shared else 0,
                seconds=seconds,
                note=part.note,
            )
            for site, part, error, number in zip(group.sites, factored, errors, stored, strict=True)
        ]

    def _leave_dense(
        self, group: FactorGroup, index: int, moments: SiteMoments | None, samples: int
    ) -> list[FactoredLayer]:
        fitted = fit_dense(group, self._stage, moments, samples) if moments else []
        if moments is None or not fitted:
            why = _NOT_WORTH if self._stage.rank is None else _NOT_ASKED
            return [_left_dense(site, index, why) for site in group.sites]
        layers = []
        for site, weight in zip(group.sites, fitted, strict=True):
            error = moments.output_error(site.weight, weight)
            site.weight.copy_(weight)
            layers.append(_left_dense(site, index, _FITTED, error, moments.statistics.num_tokens))
        return layers

    def _propagate(self, block: nn.Module, index: int) -> float:
        """All streams move on to the next block; how far this block's outputs moved."""
        error = RelativeError()
        inputs, *dense = self._streams
        self._together = []
        outputs = inputs.stream_in_parts(block, index, inputs.batch_sizes())
        for batch, (output, fitting) in enumerate(outputs):
            error.add(output, inputs.outputs[batch])
            inputs.hidden[batch].copy_(output)
            self._together.append(fitting)
        for stream in dense:
            stream.keep_outputs()
        return error.value


def whole_model_needs(stage: FactorStage) -> str:
    """What a stage needs the whole model or its dense run for, with the way out; empty if nothing.

    A stage without such a need can work on one block at a time, and be interrupted between them.
    """
    if stage.joint:
        return "joint must know which matrices share inputs before the first block: leave it out"
    if stage.method == "svd-whitened" and stage.dense_targets:
        return "dense_targets runs the dense blocks beside the compressed ones: leave it out"
    if stage.weighs_by != "output" and _importance_counts(stage, stage.weighs_by):
        return (
            f"importance {stage.weighs_by} takes gradients of the whole model: give importance "
            "output, or a rank in place of the budget"
        )
    return ""


def _importance_counts(stage: FactorStage, kind: ImportanceName) -> bool:
    """Whether anything depends on what an error of an output counts."""
    # All but directions share out ranks, and weigh the matrices of a stack, and no more.
    counts = kind == "directions" or stage.budget is not None or stage.joint
    return stage.method == "svd-whitened" and counts


def _sites(groups: Sequence[FactorGroup]) -> list[WeightSite]:
    return [site for group in groups for site in group.sites]


def _rounded(part: Factored, site: WeightSite) -> Tensor:
    return part.dense().to(site.parameter.dtype)


def _left_dense(
    site: WeightSite, index: int, note: str, error: float | None = None, num_tokens: int = 0
) -> FactoredLayer:
    return FactoredLayer(
        name=site.name,
        block=index,
        shape=site.shape,
        rank=None,
        num_parameters=site.shape[0] * site.shape[1],
        output_error=error,
        num_tokens=num_tokens,
        seconds=0.0,
        note=note,
    )
