"""The stage of a streaming job, on inputs that are made with one block in memory."""

from pathlib import Path

from secateur.calibration.inputs import BlockInputs, capture_inputs, tokens_per_batch
from secateur.clock import StepClock
from secateur.models.device import full_precision_products
from secateur.models.trace import Trace, trace_without_weights
from secateur.prepare_streaming import StreamingJob
from secateur.recipe import FactorStage
from secateur.report.record import FactoredLayer, FactorRecord, LayerRecord, PruneRecord
from secateur.stages.factor import BlockFactorer
from secateur.stages.factor_plan import FactorPlan
from secateur.stages.prune import BlockPruner
from secateur.streaming.activations import buffer_maker
from secateur.streaming.finished import BlockJournal
from secateur.streaming.shards import ShardPlan
from secateur.streaming.skeleton import modules_outside, release
from secateur.streaming.source import BlockSource
from secateur.streaming.walk import BlockWalk

Journal = BlockJournal[LayerRecord] | BlockJournal[FactoredLayer]


def run_streamed(
    job: StreamingJob,
    folder: Path,
    source: BlockSource,
    shards: ShardPlan,
    writers: int,
    clock: StepClock,
) -> tuple[PruneRecord | FactorRecord, Journal]:
    """Run the stage; every block is written as it is finished.

    Args:
        job: what to do.
        folder: of the job.
        source: of the weights.
        shards: which file holds what.
        writers: as of `BlockJournal`.
        clock: told how far it is.

    Returns:
        (what was done, the journal of all blocks).

    Raises:
        SecateurError: weights or activations that are not finite, a checkpoint that does not fill
            a block.
        OutOfSpaceError: the disk is full.
    """
    model, blocks = job.skeleton.model, job.skeleton.blocks
    title = f"stage 1: {job.stage.method}"
    if isinstance(job.stage, FactorStage):
        assert isinstance(job.plan, FactorPlan)
        factors = BlockJournal(folder, model, blocks, shards, writers, FactoredLayer, job.compact)
        with factors, clock.measured(title), full_precision_products():
            walk = BlockWalk(job.skeleton, job.inventory, source, factors, job.device)
            factorer = BlockFactorer(
                model,
                blocks,
                job.stage,
                job.plan,
                job.tokens,
                job.device,
                clock.progress,
                walk.opened,
                factors,
            )
            return factorer.run(Entrance(job, folder, source, walk, factors).enter), factors
    assert not isinstance(job.plan, FactorPlan)
    pruned = BlockJournal(folder, model, blocks, shards, writers, LayerRecord, job.compact)
    with pruned, clock.measured(title), full_precision_products():
        walk = BlockWalk(job.skeleton, job.inventory, source, pruned, job.device)
        pruner = BlockPruner(
            blocks,
            job.stage,
            job.plan,
            job.device,
            clock.progress,
            opened=walk.opened,
            finished=pruned,
        )
        return pruner.run(*Entrance(job, folder, source, walk, pruned).enter()), pruned


class Entrance:
    """The inputs of block 0, made with only that block and what is before it in memory."""

    def __init__(
        self,
        job: StreamingJob,
        folder: Path,
        source: BlockSource,
        walk: BlockWalk,
        journal: Journal,
    ) -> None:
        """`folder` is the job's, for hidden states that are kept in a file."""
        self._job = job
        self._folder = folder
        self._source = source
        self._walk = walk
        self._journal = journal
        self._trace: Trace | None = None

    def enter(self) -> tuple[BlockInputs | None, Trace | None]:
        """Fresh inputs, and how the model uses its blocks, the same value each time."""
        job, tokens = self._job, self._job.tokens
        if tokens is None:
            return None, None
        model, blocks = job.skeleton.model, job.skeleton.blocks
        self._source.load_rest()
        trace = self._trace or self._look()
        self._trace = trace
        # Inputs of before go first: both may not fit.
        self._walk.watch(None, trace)
        inputs = capture_inputs(
            model,
            blocks,
            trace,
            tokens,
            tokens_per_batch(job.device),
            job.device,
            buffer_maker(job.activations, job.device, self._folder),
        )
        release(modules_outside(model, blocks))
        self._walk.watch(inputs, trace)
        return inputs, trace

    def _look(self) -> Trace:
        skeleton, tokens = self._job.skeleton, self._job.tokens
        assert tokens is not None
        # In the dtype and on the device of the model's own run: the CPU, where the embedding is.
        # A block that was finished by an earlier run need not be read a second time.
        self._source.load_block(0, then=None if self._journal.is_finished(0) else 0)
        sample = tokens.samples[0].unsqueeze(0)
        trace = trace_without_weights(skeleton.model, skeleton.blocks, sample)
        release(skeleton.blocks.modules[0].modules())
        return trace
