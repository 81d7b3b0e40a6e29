"""Whether the weights of a checkpoint have the zeros and ranks that its report claims."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from secateur.models.inventory import Inventory
from secateur.models.sites import WeightSite
from secateur.models.swap import CompressedLinear, dense_weight
from secateur.modules import LowRankLinear, Sparse24Linear
from secateur.report.record import (
    AnyStage,
    DropRecord,
    FactoredLayer,
    FactorRecord,
    LayerRecord,
    PruneRecord,
    Report,
)
from secateur.report.training_record import InheritRecord, RecoverRecord
from secateur_kernels.layouts.low_rank import padded_rank


def pattern_faults(
    report: Report,
    inventory: Inventory,
    compressed: Mapping[str, CompressedLinear] | None = None,
) -> list[str]:
    """What differs from the report, one sentence a matrix; its last stage is the one that counts.

    An update may put back weights that an earlier stage had removed.

    Args:
        report: what was done.
        inventory: of the model as it is now.
        compressed: its compressed layers by name.
    """
    present: dict[str, WeightSite | CompressedLinear] = {
        **{site.name: site for site in inventory.all_sites},
        **(compressed or {}),
    }
    return [
        fault
        for name, layer in last_changes(report.stages, inventory.blocks.name).items()
        for fault in _layer_faults(layer, present.get(name), name)
    ]


def pruned_names(stages: Sequence[AnyStage], blocks_name: str) -> frozenset[str]:
    """Names, as they are now, of the matrices that were pruned and not changed otherwise since.

    Arguments as of `last_changes`.
    """
    changes = last_changes(stages, blocks_name)
    return frozenset(name for name, layer in changes.items() if isinstance(layer, LayerRecord))


def last_changes(
    stages: Sequence[AnyStage], blocks_name: str
) -> dict[str, LayerRecord | FactoredLayer]:
    """The last thing that was done to each pruned or factored matrix, by its name as it is now.

    Args:
        stages: all that the model went through, in order.
        blocks_name: of its list of blocks.
    """
    last: dict[str, LayerRecord | FactoredLayer] = {}
    for position, stage in enumerate(stages):
        if isinstance(stage, InheritRecord):
            last = {}  # its blocks are trained whole, and some of them are new
            continue
        if isinstance(stage, DropRecord | RecoverRecord):
            continue
        later = [s for s in stages[position + 1 :] if isinstance(s, DropRecord)]
        for layer in _changed_layers(stage):
            name = name_after_drops(layer, blocks_name, later)
            if name is not None:
                last[name] = layer
    return last


def _changed_layers(stage: PruneRecord | FactorRecord) -> list[LayerRecord | FactoredLayer]:
    if isinstance(stage, PruneRecord):
        return list(stage.layers)
    return [layer for layer in stage.layers if layer.rank is not None]


def name_after_drops(
    layer: LayerRecord | FactoredLayer, blocks_name: str, drops: list[DropRecord]
) -> str | None:
    """The layer's name once later stages have dropped blocks; None if it went with them."""
    block = layer.block
    prefix = f"{blocks_name}.{layer.block}"
    for drop in drops:
        name = f"{blocks_name}.{block}{layer.name.removeprefix(prefix)}"
        if block in drop.blocks_gone or any(name.startswith(f"{r}.") for r in drop.removed):
            return None
        block -= sum(1 for dropped in drop.blocks_gone if dropped < block)
    return f"{blocks_name}.{block}{layer.name.removeprefix(prefix)}"


def _layer_faults(
    layer: LayerRecord | FactoredLayer, present: WeightSite | CompressedLinear | None, name: str
) -> list[str]:
    if present is None:
        return [f"{name} is not in the model"]
    shape = _shape(present)
    if shape != layer.shape:
        return [f"{name} is {list(shape)}, expected {list(layer.shape)}"]
    if isinstance(layer, FactoredLayer):
        return _rank_faults(layer, present, name)
    if isinstance(present, WeightSite):
        return _zero_faults(layer, present.weight, name)
    if isinstance(present, LowRankLinear):
        return [f"{name} is a product of factors, expected a matrix with {layer.pattern} zeros"]
    return _zero_faults(layer, dense_weight(present), name)


def _shape(present: WeightSite | CompressedLinear) -> tuple[int, int]:
    if isinstance(present, WeightSite):
        return present.shape
    return present.out_features, present.in_features


def _rank_faults(
    layer: FactoredLayer, present: WeightSite | CompressedLinear, name: str
) -> list[str]:
    """Factors that were multiplied back are dense and full of numbers: nothing to see."""
    if isinstance(present, WeightSite | Sparse24Linear):
        return []
    assert layer.rank is not None
    padded = padded_rank(layer.rank)
    if present.rank not in (layer.rank, padded):
        return [f"{name} has factors of rank {present.rank}, expected {padded}"]
    return []


def _zero_faults(layer: LayerRecord, weight: Tensor, name: str) -> list[str]:
    kept = weight != 0
    sparsity = 1.0 - int(kept.sum()) / kept.numel()
    faults = []
    if sparsity < layer.sparsity - 0.5 / kept.numel():
        faults.append(f"{name} has {sparsity:.4%} zeros, expected {layer.sparsity:.4%}")
    keep, colon, group = layer.pattern.partition(":")
    if colon:
        most = int(kept.reshape(kept.shape[0], -1, int(group)).sum(dim=2).max())
        if most > int(keep):
            faults.append(f"{name} keeps {most} of {group} somewhere, expected {layer.pattern}")
    return faults
