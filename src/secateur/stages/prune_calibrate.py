"""What calibration finds out about a block that is still dense."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.calibration.experts import ExpertTokens, observed_experts
from secateur.calibration.inputs import BlockInputs
from secateur.calibration.observe import Sink
from secateur.calibration.statistics import InputStatistics
from secateur.models.trace import Trace
from secateur.parallel import Parallel
from secateur.recipe import PruneStage
from secateur.stages.prune_parameters import site_gradients
from secateur.stages.prune_plan import PlannedSite
from secateur.stages.prune_reconstruct import block_samples
from secateur.stages.prune_score import SiteFacts


@dataclass(frozen=True)
class BlockFacts:
    """What calibration says about a block."""

    sites: dict[str, SiteFacts]
    """By site name."""
    routed: tuple[int, ...]
    """Tokens that the router sends to each expert; empty without experts."""


def calibrate_block(
    block: nn.Module,
    index: int,
    planned: Sequence[PlannedSite],
    stage: PruneStage,
    inputs: BlockInputs,
    trace: Trace,
    device: torch.device,
    parallel: Parallel,
    model_gradients: Mapping[str, Tensor],
) -> BlockFacts:
    """Run a dense block on what enters it; its outputs are kept in `inputs`.

    Args:
        block: dense, on `device`.
        index: of the block.
        planned: the sites that will be pruned.
        stage: what for.
        inputs: of this process; `num_samples` counts those of all.
        trace: says which sites share their inputs; the same in all processes.
        device: where sums are kept.
        parallel: the processes whose samples are counted together.
        model_gradients: by site name [N, K], where the score asks for the model's gradient.
    """
    sites = [entry.site for entry in planned]
    counts = parallel.gather(len(inputs))
    leaders: dict[str, InputStatistics] = {}
    statistics: dict[str, InputStatistics] = {}
    sinks: dict[str, Sink] = {}
    for site in sites:
        leader = trace.shared_inputs.get(site.name, site.name)
        if leader not in leaders:
            leaders[leader] = InputStatistics(
                site.shape[1],
                with_hessian=stage.needs_hessian,
                num_batches=sum(counts),
                device=device,
                first_batch=sum(counts[: parallel.rank]),
            )
            sinks[site.name] = leaders[leader].add
        statistics[site.name] = leaders[leader]
    routed = ExpertTokens(sites)
    with observed_experts(block, sites, sinks, routed, all_experts=stage.calibrate_all_experts):
        inputs.run_block(block, index)
    for seen in leaders.values():
        seen.sum_over(parallel)
    gradients: Mapping[str, Tensor] = {
        site.name: model_gradients[site.name].to(device)
        for site in sites
        if site.name in model_gradients
    }
    if stage.score == "rgs" and planned:
        gradients = site_gradients(block, sites, block_samples(inputs, index), parallel)
    found = {
        name: SiteFacts(seen, gradients.get(name), inputs.num_samples)
        for name, seen in statistics.items()
    }
    by_process = zip(*parallel.gather(routed.counts), strict=True)
    return BlockFacts(found, tuple(sum(tokens) for tokens in by_process))
