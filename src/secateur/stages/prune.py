"""The prune stage: block after block, statistics from the still dense block on inputs that come
from the already pruned blocks before it.
"""

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import nn

from secateur.calibration.inputs import BlockInputs
from secateur.calibration.observe import Sink, observed
from secateur.calibration.statistics import InputStatistics, RelativeError
from secateur.models.blocks import BlockList
from secateur.models.device import on_device
from secateur.models.replay import Trace
from secateur.progress import Progress
from secateur.recipe import PruneStage
from secateur.report.record import BlockRecord, LayerRecord, PruneRecord
from secateur.stages.prune_plan import PlannedSite
from secateur.stages.prune_site import SharedHessians, prune_site


class BlockPruner:
    """Runs one prune stage over a model's blocks."""

    def __init__(
        self,
        blocks: BlockList,
        stage: PruneStage,
        plan: Sequence[Sequence[PlannedSite]],
        device: torch.device,
        progress: Progress,
    ) -> None:
        self._blocks = blocks
        self._stage = stage
        self._plan = plan
        self._device = device
        self._progress = progress
        self._seconds = {"calibrating": 0.0, "pruning": 0.0, "propagating": 0.0}

    def run(self, inputs: BlockInputs | None, trace: Trace | None) -> PruneRecord:
        """Prune every block.

        Args:
            inputs: of block 0, overwritten; None to prune without calibration (magnitude only).
            trace: how the model uses its blocks; needed with inputs.
        """
        num_sites = sum(len(sites) for sites in self._plan)
        self._progress.begin(f"prune ({self._stage.method})", num_sites)
        layers: list[LayerRecord] = []
        block_records: list[BlockRecord] = []
        for index, block in enumerate(self._blocks.modules):
            with on_device(block, self._device):
                new_layers, block_record = self._prune_block(block, index, inputs, trace)
            layers += new_layers
            block_records.append(block_record)
        return self._record(layers, block_records)

    def _prune_block(
        self, block: nn.Module, index: int, inputs: BlockInputs | None, trace: Trace | None
    ) -> tuple[list[LayerRecord], BlockRecord]:
        started = perf_counter()
        planned = self._plan[index]
        if inputs is None or trace is None:
            layers = self._prune_sites(planned, index, {}, num_samples=1)
            return layers, BlockRecord(
                block=index, output_error=None, seconds=perf_counter() - started
            )
        statistics = self._calibrate(block, index, inputs, trace)
        layers = self._prune_sites(planned, index, statistics, inputs.num_samples)
        statistics.clear()
        error = self._propagate(block, index, inputs)
        return layers, BlockRecord(
            block=index, output_error=error, seconds=perf_counter() - started
        )

    def _calibrate(
        self, block: nn.Module, index: int, inputs: BlockInputs, trace: Trace
    ) -> dict[str, InputStatistics]:
        """Run the dense block: its outputs are kept, statistics come back by site name."""
        started = perf_counter()
        planned = self._plan[index]
        statistics: dict[str, InputStatistics] = {}
        sinks: dict[str, Sink] = {}
        leaders: dict[str, InputStatistics] = {}
        for entry in planned:
            leader = trace.shared_inputs.get(entry.site.name, entry.site.name)
            if leader not in leaders:
                leaders[leader] = self._new_statistics(entry, len(inputs))
                sinks[entry.site.name] = leaders[leader].add
            statistics[entry.site.name] = leaders[leader]
        with observed([entry.site for entry in planned], sinks):
            inputs.run_block(block, index)
        self._seconds["calibrating"] += perf_counter() - started
        return statistics

    def _new_statistics(self, planned: PlannedSite, num_batches: int) -> InputStatistics:
        return InputStatistics(
            planned.site.shape[1],
            with_hessian=self._stage.method == "sparsegpt",
            num_batches=num_batches,
            device=self._device,
        )

    def _prune_sites(
        self,
        planned: Sequence[PlannedSite],
        index: int,
        statistics: dict[str, InputStatistics],
        num_samples: int,
    ) -> list[LayerRecord]:
        started = perf_counter()
        hessians = SharedHessians(self._stage.damping, num_samples)
        layers = []
        for entry in planned:
            record = prune_site(
                entry,
                self._stage,
                index,
                statistics.get(entry.site.name),
                num_samples,
                hessians,
            )
            layers.append(record)
            error = "" if record.output_error is None else f"  error {record.output_error:.3f}"
            self._progress.advance(f"block {index}  {entry.site.name.split('.')[-1]}{error}")
        self._seconds["pruning"] += perf_counter() - started
        return layers

    def _propagate(self, block: nn.Module, index: int, inputs: BlockInputs) -> float:
        """Make the pruned block's outputs the next block's inputs; how far they moved."""
        started = perf_counter()
        error = RelativeError()
        for batch, output in enumerate(inputs.stream(block, index)):
            error.add(output, inputs.outputs[batch])
            inputs.hidden[batch].copy_(output)
        self._seconds["propagating"] += perf_counter() - started
        return error.value

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
        )
