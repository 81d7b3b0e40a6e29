"""Statistics for factoring: one run of a dense block on two streams of the same tokens, or of a
block and its dense copy on one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.calibration.inputs import BlockInputs
from secateur.calibration.observe import Sink, observed
from secateur.calibration.statistics import CrossMoment, InputStatistics
from secateur.models.sites import WeightSite
from secateur.models.trace import Trace


@dataclass(frozen=True, eq=False)
class SiteMoments:
    """What a site's input was like; sites of one input share it."""

    statistics: InputStatistics
    cross: CrossMoment | None
    """With the dense model's input; None without a dense stream, and for experts, to which the
    two models may route other tokens."""
    of_dense: InputStatistics | None = None
    """Of that input alone, where `cross` is there."""

    def output_error(self, dense: Tensor, new: Tensor) -> float | None:
        """How far a matrix's outputs move from those that it was fitted to.

        These are the dense matrix's, on the dense model's inputs where they were watched. As
        `InputStatistics.output_error`.
        """
        return self.statistics.output_error(dense, new, self.of_dense)


def collect_moments(
    block: nn.Module,
    index: int,
    sites: Sequence[WeightSite],
    streams: tuple[BlockInputs, ...],
    trace: Trace,
    device: torch.device,
) -> dict[str, SiteMoments]:
    """Run the block, still dense, on what compressed blocks give it and on what dense ones gave.

    The outputs of all streams are kept in their buffers.

    Args:
        block: on `device`.
        index: of the block.
        sites: whose inputs are watched.
        streams: inputs in the compressed model, and those in the dense model or nothing.
        trace: how the model uses its blocks.
        device: where sums are kept.

    Returns:
        moments by site name.

    Raises:
        torch.OutOfMemoryError: a batch does not fit; see `in_smaller_batches`.
    """
    inputs, *dense_inputs = streams
    moments: dict[str, SiteMoments] = {}
    leaders: dict[str, SiteMoments] = {}
    seen: dict[str, list[Tensor]] = {}
    sinks: dict[str, Sink] = {}
    for site in sites:
        leader = trace.shared_inputs.get(site.name, site.name)
        if leader not in leaders:
            leaders[leader] = _start(site, inputs, bool(dense_inputs), device)
            if not dense_inputs:
                sinks[site.name] = leaders[leader].statistics.add
            else:
                sinks[site.name] = seen.setdefault(leader, []).append
        moments[site.name] = leaders[leader]
    with observed(sites, sinks):
        if not dense_inputs:
            inputs.run_block(block, index)
        else:
            _run_both(block, index, inputs, dense_inputs[0], leaders, seen)
    return moments


def collect_fed_moments(
    block: nn.Module,
    dense_block: nn.Module,
    index: int,
    sites: Sequence[WeightSite],
    streams: tuple[BlockInputs],
    block_name: str,
    device: torch.device,
) -> dict[str, SiteMoments]:
    """Run a block that is compressed in part, and the dense one, on the same inputs.

    The outputs that are kept are the dense block's.

    Args:
        block: on `device`; what feeds `sites` is compressed, they are dense.
        dense_block: its copy from before.
        index: of the block.
        sites: matrices of `block`, each with an input of its own, and no experts.
        streams: inputs in the compressed model.
        block_name: dotted.
        device: where sums are kept.

    Returns:
        moments by site name: of inputs in `block`, crossed with those in the dense block.

    Raises:
        torch.OutOfMemoryError: a batch does not fit; see `in_smaller_batches`.
    """
    [inputs] = streams
    moments = {site.name: _start(site, inputs, with_cross=True, device=device) for site in sites}
    dense_sites = [
        replace(site, module=dense_block.get_submodule(site.name.removeprefix(f"{block_name}.")))
        for site in sites
    ]
    for batch in range(len(inputs)):
        seen = _inputs_of(sites, block, inputs, index, batch)
        of_dense = _inputs_of(dense_sites, dense_block, inputs, index, batch)
        for name, batches in seen.items():
            _take_in(moments[name], of_dense[name], batches)
    return moments


def _inputs_of(
    sites: Sequence[WeightSite], block: nn.Module, inputs: BlockInputs, index: int, batch: int
) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    with observed(sites, {name: batches.append for name, batches in seen.items()}):
        inputs.run_batch(block, index, batch)
    return seen


def _start(
    site: WeightSite, inputs: BlockInputs, with_cross: bool, device: torch.device
) -> SiteMoments:
    columns = site.shape[1]
    statistics = InputStatistics(columns, with_hessian=True, num_batches=len(inputs), device=device)
    if not with_cross or site.is_expert:
        return SiteMoments(statistics, None)
    of_dense = InputStatistics(columns, with_hessian=False, num_batches=len(inputs), device=device)
    return SiteMoments(statistics, CrossMoment(columns, device), of_dense)


def _run_both(
    block: nn.Module,
    index: int,
    inputs: BlockInputs,
    dense_inputs: BlockInputs,
    leaders: Mapping[str, SiteMoments],
    seen: Mapping[str, list[Tensor]],
) -> None:
    for batch in range(len(inputs)):
        dense_inputs.run_batch(block, index, batch)
        of_dense = {leader: list(batches) for leader, batches in seen.items()}
        for batches in seen.values():
            batches.clear()
        inputs.run_batch(block, index, batch)
        for leader, batches in seen.items():
            _take_in(leaders[leader], of_dense[leader], batches)
            batches.clear()


def _take_in(moments: SiteMoments, of_dense: Sequence[Tensor], batches: Sequence[Tensor]) -> None:
    for batch in batches:
        moments.statistics.add(batch)
    if moments.cross is None or moments.of_dense is None:
        return
    for dense, batch in zip(of_dense, batches, strict=True):
        moments.cross.add(dense, batch)
        moments.of_dense.add(dense)
