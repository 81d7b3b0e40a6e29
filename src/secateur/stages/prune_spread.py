"""What the first process pruned, in all of the processes that share a calibration."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from secateur.parallel import Parallel
from secateur.recipe.prune_stage import Score
from secateur.report.record import LayerRecord
from secateur.stages.prune_plan import PlannedSite
from secateur.stages.prune_site import PrunedSite


def prune_together(
    parallel: Parallel, planned: Sequence[PlannedSite], prune: Callable[[], list[PrunedSite]]
) -> list[PrunedSite]:
    """Prune in the first process alone; weights, masks and records are then the same in all.

    Args:
        parallel: the processes, whose weights are the same before.
        planned: the sites, on the device of each process.
        prune: prunes them in place, in their order.

    Raises:
        SecateurError: pruning raised it, in all processes.
    """
    if parallel.size == 1:
        return prune()
    own: list[PrunedSite] = []

    def in_words() -> list[tuple[LayerRecord, Score | None]]:
        own.extend(prune())
        return [(site.record, site.score) for site in own]

    found = parallel.from_first(in_words)
    parameters = {id(entry.site.parameter): entry.site.parameter for entry in planned}
    parallel.broadcast_(*(parameter.data for parameter in parameters.values()))
    if own:
        masks = [site.keep_mask for site in own]
    else:
        masks = [torch.empty_like(entry.site.weight, dtype=torch.bool) for entry in planned]
    parallel.broadcast_(*masks)
    return [
        PrunedSite(entry, record, mask, score)
        for entry, (record, score), mask in zip(planned, found, masks, strict=True)
    ]


def settle_weights(parallel: Parallel, block: nn.Module) -> None:
    """Make a block's parameters those of the first process, to the last bit."""
    parallel.broadcast_(*(parameter.data for parameter in block.parameters()))
