"""What a prune stage will do to each weight site, settled and checked before any change."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.errors import SecateurError
from secateur.models.inventory import Inventory
from secateur.models.selection import matches, require_match, select_sites
from secateur.models.sites import WeightSite
from secateur.recipe import PruneStage, Sparsity, parse_sparsity


@dataclass(frozen=True)
class PlannedSite:
    """One matrix and how sparse it becomes."""

    site: WeightSite
    sparsity: Sparsity


def plan_stage(stage: PruneStage, inventory: Inventory) -> list[list[PlannedSite]]:
    """By block, the sites that the stage prunes.

    Raises:
        SecateurError: a target, ignore or override matches nothing, or a matrix cannot take the
            pattern asked for.
    """
    selected = select_sites(inventory.all_sites, stage.targets, stage.ignore, inventory.left_alone)
    for override in stage.overrides:
        for pattern in override.targets:
            require_match(selected, pattern, "override target")
    chosen = {id(site) for site in selected}
    plan = [
        [PlannedSite(site, _sparsity_of(site, stage)) for site in sites if id(site) in chosen]
        for sites in inventory.sites
    ]
    _check_groups([planned for block in plan for planned in block])
    return plan


def _sparsity_of(site: WeightSite, stage: PruneStage) -> Sparsity:
    for override in reversed(stage.overrides):
        if any(matches(site, pattern) for pattern in override.targets):
            return parse_sparsity(override.pattern, override.sparsity)
    return parse_sparsity(stage.pattern, stage.sparsity)


def _check_groups(plan: Sequence[PlannedSite]) -> None:
    misfits = [
        f"{planned.site.name} with K = {planned.site.shape[1]}"
        for planned in plan
        if planned.sparsity.group and planned.site.shape[1] % planned.sparsity.group
    ]
    if misfits:
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        raise SecateurError(
            "expected K divisible by the group of the pattern, but it is not for "
            f"{shown}. Name them in `ignore`, or give them another pattern in `overrides`"
        )
