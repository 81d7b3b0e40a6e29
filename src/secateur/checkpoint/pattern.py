"""Whether the weights of a checkpoint have the zeros that its report claims."""

from secateur.models.inventory import Inventory
from secateur.models.sites import WeightSite
from secateur.report.record import DropRecord, LayerRecord, PruneRecord, Report


def pattern_faults(report: Report, inventory: Inventory) -> list[str]:
    """What differs from the report, one sentence a matrix; its last stage is the one that counts.

    An update may put back weights that an earlier stage had removed.
    """
    sites = {site.name: site for site in inventory.all_sites}
    last: dict[str, LayerRecord] = {}
    for position, stage in enumerate(report.stages):
        if not isinstance(stage, PruneRecord):
            continue
        later = [s for s in report.stages[position + 1 :] if isinstance(s, DropRecord)]
        for layer in stage.layers:
            name = name_after_drops(layer, inventory.blocks.name, later)
            if name is not None:
                last[name] = layer
    return [
        fault
        for name, layer in last.items()
        for fault in _layer_faults(layer, sites.get(name), name)
    ]


def name_after_drops(layer: LayerRecord, blocks_name: str, drops: list[DropRecord]) -> str | None:
    """The layer's name once later stages have dropped blocks; None if it went with its block."""
    block = layer.block
    for drop in drops:
        if block in drop.dropped:
            return None
        block -= sum(1 for dropped in drop.dropped if dropped < block)
    prefix = f"{blocks_name}.{layer.block}."
    return f"{blocks_name}.{block}.{layer.name.removeprefix(prefix)}"


def _layer_faults(layer: LayerRecord, site: WeightSite | None, name: str) -> list[str]:
    if site is None:
        return [f"{name} is not in the model"]
    if site.shape != layer.shape:
        return [f"{name} is {list(site.shape)}, expected {list(layer.shape)}"]
    kept = site.weight != 0
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
