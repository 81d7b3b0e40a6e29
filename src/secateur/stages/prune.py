"""The prune stage: block after block, statistics from the still dense block on inputs that come
from the already pruned blocks before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs, in_smaller_batches, shortage_note
from secateur.calibration.statistics import RelativeError
from secateur.models.blocks import BlockList
from secateur.models.device import on_device
from secateur.models.sites import WeightSite
from secateur.models.trace import Trace
from secateur.parallel import Parallel
from secateur.progress import Progress
from secateur.recipe import PruneStage
from secateur.report.record import BlockRecord, LayerRecord, PruneRecord
from secateur.stages.finished import FinishedBlocks
from secateur.stages.prune_calibrate import BlockFacts, calibrate_block
from secateur.stages.prune_parameters import parameter_masks
from secateur.stages.prune_plan import PlannedSite
from secateur.stages.prune_reconstruct import (
    Tuned,
    block_samples,
    check_tuning,
    half_targets,
    tune_block,
)
from secateur.stages.prune_score import SiteFacts, score_site, selector
from secateur.stages.prune_site import PrunedSite, fraction_of_zeros, prune_site
from secateur.stages.prune_spread import prune_together, settle_weights
from secateur.stages.prune_update import SharedHessians


@dataclass(frozen=True)
class _Tuning:
    """What tuning did to a block, until it is known whether that helped."""

    tuned: Tuned
    before: float
    """The block's error before it."""
    untuned: Sequence[Tensor]
    """The parameters before it; none where samples that were held out decide."""


class BlockPruner:
    """Runs one prune stage over a model's blocks."""

    def __init__(
        self,
        blocks: BlockList,
        stage: PruneStage,
        plan: Sequence[Sequence[PlannedSite]],
        device: torch.device,
        progress: Progress,
        opened: Callable[[int], AbstractContextManager[None]] | None = None,
        finished: FinishedBlocks[LayerRecord] | None = None,
        parallel: Parallel | None = None,
        model_gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Get ready.

        Args:
            blocks: of the model.
            stage: what to do.
            plan: by block, see `plan_stage`.
            device: where blocks run.
            progress: told of every matrix.
            opened: makes a block's weights be on `device` while it is open; by default it is
                moved there and back.
            finished: blocks of an interrupted stage, which are only run through.
            parallel: processes that share the calibration, each with inputs of its own; all end
                with the same weights.
            model_gradients: by site name [N, K], where the stage `needs_model_gradient`.
        """
        self._blocks = blocks
        self._opened = opened or (lambda index: on_device(blocks.modules[index], device))
        self._finished = finished
        self._parallel = parallel or Parallel()
        self._model_gradients = model_gradients or {}
        self._stage = stage
        self._tuning = stage.resolved_reconstruct()
        self._plan = plan
        self._device = device
        self._progress = progress
        self._whole: BlockInputs | None = None
        """Of the block at hand, in batches as they were given."""
        self._inputs: BlockInputs | None = None
        """The same memory in batches that fit."""
        self._together: list[int] = []
        """Samples of every batch that there was memory for at once, in the block at hand."""
        self._seconds = {"calibrating": 0.0, "pruning": 0.0, "tuning": 0.0, "propagating": 0.0}

    def run(self, inputs: BlockInputs | None, trace: Trace | None) -> PruneRecord:
        """Prune every block.

        Args:
            inputs: of block 0, overwritten; None to prune without calibration (magnitude only).
            trace: how the model uses its blocks; needed with inputs.

        Raises:
            SecateurError: the blocks cannot be tuned as asked (before any change), or activations
                are not finite.
        """
        if self._tuning is not None and inputs is not None:
            # Where blocks are read from disk one by one, the first stands for all.
            looked_at = 1 if self._finished else len(self._blocks)
            check_tuning(self._tuning, self._blocks, inputs, self._opened, looked_at)
        num_steps = sum(map(self._num_steps, range(len(self._plan))))
        self._progress.begin(f"prune ({self._stage.method})", num_steps)
        self._whole = self._inputs = inputs
        layers: list[LayerRecord] = []
        block_records: list[BlockRecord] = []
        for index, block in enumerate(self._blocks.modules):
            done_before = self._finished.read(index) if self._finished else None
            if done_before is None:
                new_layers, block_record = self._prune_open(block, index, trace)
            else:
                new_layers, block_record, together = done_before
                self._pass_through(block, index, together)
            layers += new_layers
            block_records.append(block_record)
        return self._record(layers, block_records)

    def _prune_open(
        self, block: nn.Module, index: int, trace: Trace | None
    ) -> tuple[list[LayerRecord], BlockRecord]:
        with self._opened(index):
            layers, record = self._prune_block(block, index, trace)
            if self._finished:
                self._finished.save(index, layers, record, self._together)
        return layers, record

    def _pass_through(self, block: nn.Module, index: int, together: list[int]) -> None:
        """Move hidden states through a block that is pruned already, as they were moved then."""
        if self._inputs is not None and self._whole is not None:
            # A block that was missing before it may have been made anew in smaller batches.
            inputs = self._inputs if len(self._inputs) <= len(together) else self._whole
            self._inputs = inputs.in_batches(len(together))
            with self._opened(index), self._timed("propagating"):
                self._inputs.pass_through(block, index, together)
        for _ in range(self._num_steps(index)):
            self._progress.advance(f"block {index} was finished before")

    def _num_steps(self, index: int) -> int:
        """One for every matrix of a block, and one for every round on it."""
        num_sites = len(self._plan[index])
        if self._tuning is None or num_sites == 0:
            return num_sites
        parts = 2 if self._tuning.granularity == "halves" else 1
        return num_sites + parts * (self._tuning.rounds or 0)

    def _prune_block(
        self, block: nn.Module, index: int, trace: Trace | None
    ) -> tuple[list[LayerRecord], BlockRecord]:
        started = perf_counter()
        planned = self._plan[index]
        if self._inputs is None or trace is None:
            pruned = self._prune_sites(planned, index, {}, num_samples=1)
            return [site.record for site in pruned], BlockRecord(
                block=index, output_error=None, seconds=perf_counter() - started
            )
        found, inputs, short_of_memory = self._calibrate(block, index, self._inputs, trace)
        self._inputs = inputs
        facts = found.sites
        tuning: _Tuning | None = None
        if self._tuning is not None and planned:
            layers, tuning = self._prune_and_tune(block, index, inputs, facts)
        else:
            pruned = self._prune_sites(planned, index, facts, inputs.num_samples)
            layers = [site.record for site in pruned]
        facts.clear()
        if tuning is None:
            error, note = self._propagate(block, index, inputs, inputs.hidden), ""
        else:
            error, note = self._propagate_tuned(block, index, inputs, tuning)
            layers = [
                replace(layer, sparsity=fraction_of_zeros(entry.site.weight))
                for layer, entry in zip(layers, planned, strict=True)
            ]
        return layers, BlockRecord(
            block=index,
            output_error=error,
            seconds=perf_counter() - started,
            error_before_tuning=tuning.before if tuning else None,
            rounds=tuning.tuned.rounds if tuning else (),
            expert_tokens=found.routed,
            note="; ".join(filter(None, (short_of_memory, note))),
        )

    def _calibrate(
        self, block: nn.Module, index: int, inputs: BlockInputs, trace: Trace
    ) -> tuple[BlockFacts, BlockInputs, str]:
        """What calibration says, the batches that there was memory for, and a note on them."""

        def calibrate(streams: tuple[BlockInputs, ...]) -> BlockFacts:
            return calibrate_block(
                block,
                index,
                self._plan[index],
                self._stage,
                streams[0],
                trace,
                self._device,
                self._parallel,
                self._model_gradients,
            )

        with self._timed("calibrating"):
            alone = self._parallel.size == 1
            found, (fitting,) = in_smaller_batches(calibrate, (inputs,), alone)
        return found, fitting, shortage_note(index, inputs, fitting)

    def _prune_sites(
        self,
        planned: Sequence[PlannedSite],
        index: int,
        facts: Mapping[str, SiteFacts],
        num_samples: int,
    ) -> list[PrunedSite]:
        nothing = SiteFacts(None, None, num_samples)
        own = [facts.get(entry.site.name, nothing) for entry in planned]
        users = (known.statistics for known in own)
        hessians = SharedHessians(self._stage.damping, num_samples, users)

        def prune() -> list[PrunedSite]:
            pruned = []
            for entry, known in zip(planned, own, strict=True):
                site = prune_site(entry, self._stage, index, known, hessians)
                hessians.done(known.statistics)
                pruned.append(site)
                found = site.record.output_error
                error = "" if found is None else f"  error {found:.3f}"
                self._progress.advance(f"block {index}  {entry.site.name.split('.')[-1]}{error}")
            return pruned

        with self._timed("pruning"):
            return prune_together(self._parallel, planned, prune)

    def _prune_and_tune(
        self, block: nn.Module, index: int, inputs: BlockInputs, facts: dict[str, SiteFacts]
    ) -> tuple[list[LayerRecord], "_Tuning"]:
        """Prune a block's matrices and tune the block."""
        tuning = self._tuning
        assert tuning is not None
        samples = block_samples(inputs, index)
        with self._timed("tuning"):
            halves = half_targets(block, samples) if tuning.granularity == "halves" else None
        pruned = self._prune_sites(self._plan[index], index, facts, inputs.num_samples)
        masks = parameter_masks(block, [(site.planned.site, site.keep_mask) for site in pruned])
        if tuning.frozen_mask:
            facts.clear()

        def project() -> dict[str, Tensor]:
            chosen = parameter_masks(block, [self._rescored(site, facts) for site in pruned])
            self._parallel.broadcast_(*chosen.values())
            return chosen

        with self._timed("tuning"):
            before = self._block_error(block, index, inputs)
            # With samples held out, tuning itself goes back to the best round, at worst none.
            weights = () if tuning.held_out else block.parameters()
            untuned = [parameter.detach().clone() for parameter in weights]
            tuned = tune_block(
                block,
                index,
                tuning,
                samples,
                inputs.outputs,
                halves,
                masks,
                None if tuning.frozen_mask else project,
                self._progress,
                self._parallel,
            )
            settle_weights(self._parallel, block)
        return [site.record for site in pruned], _Tuning(tuned, before, untuned)

    def _rescored(
        self, pruned: PrunedSite, facts: Mapping[str, SiteFacts]
    ) -> tuple[WeightSite, Tensor]:
        """The mask of a matrix's weights as they are now."""
        site, stage = pruned.planned.site, self._stage
        assert pruned.score is not None
        score = score_site(site.weight, pruned.score, stage, facts[site.name])
        return site, selector(pruned.planned.sparsity, stage)(score)

    def _block_error(self, block: nn.Module, index: int, inputs: BlockInputs) -> float:
        error = RelativeError()
        for dense, output in zip(inputs.outputs, inputs.stream(block, index), strict=True):
            error.add(output, dense)
        return error.over_all(self._parallel)

    def _propagate_tuned(
        self, block: nn.Module, index: int, inputs: BlockInputs, tuning: "_Tuning"
    ) -> tuple[float, str]:
        """As `_propagate`, with tuning undone where it made the block worse; a note on that."""
        note, before = tuning.tuned.note, tuning.before
        if not tuning.untuned:
            error = self._propagate(block, index, inputs, inputs.hidden)
            return error, note or _raised(index, before, error, undone=False)
        # Beside the inputs, which are needed again if it is undone.
        error = self._propagate(block, index, inputs, inputs.outputs)
        if error <= before:
            inputs.keep_outputs()
            return error, note
        for parameter, value in zip(block.parameters(), tuning.untuned, strict=True):
            parameter.data.copy_(value)
        self._propagate(block, index, inputs, inputs.hidden)
        raised = _raised(index, before, error, undone=True)
        return before, "; ".join(filter(None, (note, raised)))

    def _propagate(
        self, block: nn.Module, index: int, inputs: BlockInputs, into: Sequence[Tensor]
    ) -> float:
        """Run the pruned block; how far its outputs moved from the dense ones.

        `into`: by batch, where they go; the next block's inputs are in `inputs.hidden`.
        """
        error = RelativeError()
        self._together = []
        outputs = inputs.stream_in_parts(block, index, inputs.batch_sizes())
        with self._timed("propagating"):
            for batch, (output, fitting) in enumerate(outputs):
                error.add(output, inputs.outputs[batch])
                into[batch].copy_(output)
                self._together.append(fitting)
        return error.over_all(self._parallel)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self._seconds[step] += perf_counter() - started

    def _record(self, layers: list[LayerRecord], blocks: list[BlockRecord]) -> PruneRecord:
        stage = self._stage
        return PruneRecord(
            method=stage.method,
            pattern=stage.pattern,
            comparison_group=(
                stage.resolved_comparison_group() if stage.pattern == "unstructured" else None
            ),
            layers=tuple(layers),
            blocks=tuple(blocks),
            seconds_calibrating=self._seconds["calibrating"],
            seconds_pruning=self._seconds["pruning"],
            seconds_propagating=self._seconds["propagating"],
            seconds_tuning=self._seconds["tuning"],
            calibrate_all_experts=stage.calibrate_all_experts,
            min_expert_tokens=stage.min_expert_tokens,
        )


def _raised(block: int, before: float, after: float, undone: bool) -> str:
    if after <= before:
        return ""
    return (
        f"tuning raised the output error of block {block} from {before:.4f} to {after:.4f}"
        f"{' and was undone' if undone else ''}: try a lower rate, more rounds or samples, or hold "
        "some out"
    )
