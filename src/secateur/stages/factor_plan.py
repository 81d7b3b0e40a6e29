"""What a factor stage will do to which matrices, settled and checked before any change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from secateur.errors import SecateurError
from secateur.lowrank import break_even_rank, rank_for_fraction, storage_complaint
from secateur.models.inventory import Inventory
from secateur.models.matrix_types import matrix_type
from secateur.models.selection import matches, require_match, select_sites
from secateur.models.sites import WeightSite
from secateur.models.swap import may_be_replaced
from secateur.recipe import FactorStage
from secateur_kernels.layouts.low_rank import RANK_STEP, padded_rank

# The packed part of a sparse-plus-low-rank layer.
SPARSE_PATTERN = (2, 4)


@dataclass(frozen=True)
class FactorPlan:
    """Sites by block, and the rank of each where the recipe says it."""

    sites: tuple[tuple[WeightSite, ...], ...]
    ranks: Mapping[str, int | None]
    """By site name, None to stay dense; empty where a budget decides."""
    warnings: tuple[str, ...] = ()


def plan_factoring(stage: FactorStage, inventory: Inventory) -> FactorPlan:
    """Choose the matrices of a stage.

    Raises:
        SecateurError: nothing matches, a matrix cannot take the rank or the form asked for, or,
            with `strict`, factors would store more than the matrix.
    """
    plan = _laser(stage, inventory) if stage.method == "laser" else _selected(stage, inventory)
    sites = [site for block in plan.sites for site in block]
    _check_form(stage, sites)
    warnings = _storage(stage, sites, plan.ranks)
    if warnings and stage.strict:
        raise SecateurError("; ".join(warnings[:3]))
    return FactorPlan(plan.sites, plan.ranks, tuple(warnings))


def _selected(stage: FactorStage, inventory: Inventory) -> FactorPlan:
    selected = select_sites(inventory.all_sites, stage.targets, stage.ignore, inventory.left_alone)
    chosen = {id(site) for site in selected}
    by_block = tuple(
        tuple(site for site in sites if id(site) in chosen) for sites in inventory.sites
    )
    if stage.rank is not None:
        ranks = _ranks(stage, stage.rank, selected)
        # Which matrices a stack joins is known once the model has run: see `check_stacks`.
        if not stage.joint:
            for site in selected:
                if (rank := ranks[site.name]) is not None:
                    _check_rank(rank, [(site.name, site.shape)])
        return FactorPlan(by_block, ranks)
    assert stage.budget is not None
    shapes = {site.name: site.shape for site in selected}
    if stage.method == "sparse-plus-low-rank":
        return FactorPlan(by_block, _ranks_beside_sparse(shapes, stage.budget))
    if not stage.joint:
        _check_budget(shapes, stage.budget)
    return FactorPlan(by_block, {})


def _ranks(stage: FactorStage, rank: int, selected: Sequence[WeightSite]) -> dict[str, int | None]:
    """By site name: the last override that matches, or the stage's own rank."""
    ranks: dict[str, int | None] = {site.name: rank for site in selected}
    for override in stage.overrides:
        for pattern in override.targets:
            require_match(selected, pattern, "override target")
            ranks |= {site.name: override.rank for site in selected if matches(site, pattern)}
    return ranks


def check_stacks(
    stage: FactorStage, stacks: Sequence[tuple[str, tuple[int, int]]]
) -> tuple[str, ...]:
    """Check the recipe's rank against stacks of matrices that are factored together.

    Args:
        stage: with `joint`.
        stacks: name and shape of each.

    Returns:
        warnings about ranks that store more than the stack.

    Raises:
        SecateurError: a rank is above min(N, K), or, with `strict`, does not pay.
    """
    if stage.rank is None:
        return ()
    _check_rank(stage.rank, stacks)
    complaints = [
        f"{name}: {complaint}"
        for name, shape in stacks
        if (complaint := storage_complaint(padded_rank(stage.rank), *shape))
    ]
    if complaints and stage.strict:
        raise SecateurError("; ".join(complaints[:3]))
    return tuple(complaints)


def _check_rank(rank: int, shapes: Sequence[tuple[str, tuple[int, int]]]) -> None:
    for name, shape in shapes:
        if rank > min(shape):
            raise SecateurError(
                f"expected a rank of at most min(N, K), got {rank} for {name} {list(shape)}"
            )


def _check_budget(shapes: Mapping[str, tuple[int, int]], budget: float) -> None:
    """At rank 16, the lowest, or dense where that is smaller, all must fit."""
    least = sum(min(RANK_STEP * (n + k), n * k) for n, k in shapes.values())
    whole = sum(n * k for n, k in shapes.values())
    if least > (1.0 - budget) * whole:
        raise SecateurError(
            f"expected a budget of at most {1 - least / whole:.3f} for these {len(shapes)} "
            f"matrices (rank {RANK_STEP}, the lowest, in all of them), got {budget:g}"
        )


def _ranks_beside_sparse(shapes: Mapping[str, tuple[int, int]], budget: float) -> dict[str, int]:
    """What is left of the budget once half of each weight is kept as 2:4, in whole steps.

    Each matrix gets the same share of its values, rounded down; what that leaves goes, step by
    step, to the matrix that is furthest below its share, as long as a step fits.
    """
    shares = {name: (0.5 - budget) * n * k / (n + k) for name, (n, k) in shapes.items()}
    ranks = {
        name: min(max(RANK_STEP, int(shares[name]) // RANK_STEP * RANK_STEP), *shape)
        for name, shape in shapes.items()
    }
    whole = sum(n * k for n, k in shapes.values())
    least = sum(RANK_STEP * (n + k) for n, k in shapes.values()) + whole / 2
    stored = sum(padded_rank(ranks[x]) * (n + k) for x, (n, k) in shapes.items()) + whole / 2
    if stored > (1.0 - budget) * whole:
        raise SecateurError(
            f"expected a budget of at most {max(0.0, 1 - least / whole):.3f} for these "
            f"{len(shapes)} matrices (rank {RANK_STEP}, the lowest, beside 2:4), got {budget:g}"
        )
    room = int((1.0 - budget) * whole - stored)
    while fitting := [name for name in ranks if _has_room(ranks[name], shapes[name], room)]:
        furthest = min(fitting, key=lambda name: ranks[name] / shares[name])
        ranks[furthest] += RANK_STEP
        room -= RANK_STEP * sum(shapes[furthest])
    return ranks


def _has_room(rank: int, shape: tuple[int, int], room: int) -> bool:
    """Whether a matrix can take one more step of rank beside 2:4, and that pays."""
    more = rank + RANK_STEP
    fits = more <= min(shape) and RANK_STEP * sum(shape) <= room
    return fits and _sparse_complaint(more, shape) is None


def stored_beyond_dense(stage: FactorStage, plan: FactorPlan) -> int:
    """Values that factors store beyond those of the dense matrices, where ranks do not pay.

    Index pairs of 2:4, an eighth of a byte a weight, count as a sixteenth of a value of 16 bits.
    Ranks that a budget shares out always pay.
    """
    if not stage.writes_factors:
        return 0
    beside = 9 / 16 if stage.method == "sparse-plus-low-rank" else 0.0
    more = 0
    for site in (site for block in plan.sites for site in block):
        rank = plan.ranks.get(site.name)
        if rank is not None:
            n, k = site.shape
            more += max(0, padded_rank(rank) * (n + k) + int(beside * n * k) - n * k)
    return more


def _laser(stage: FactorStage, inventory: Inventory) -> FactorPlan:
    by_block: list[list[WeightSite]] = [[] for _ in inventory.sites]
    ranks: dict[str, int] = {}
    for cut in stage.interventions:
        if cut.block >= len(inventory.sites):
            raise SecateurError(
                f"laser names block {cut.block}, but the model has blocks 0 to "
                f"{len(inventory.sites) - 1}"
            )
        types = {matrix_type(site): site for site in inventory.sites[cut.block]}
        if cut.matrix not in types:
            found = ", ".join(str(name) for name in types if name is not None) or "none"
            raise SecateurError(
                f"block {cut.block} has no matrix of type {cut.matrix}; it has: {found}"
            )
        site = types[cut.matrix]
        by_block[cut.block].append(site)
        ranks[site.name] = rank_for_fraction(cut.fraction, *site.shape)
    return FactorPlan(tuple(tuple(sites) for sites in by_block), ranks)


def _check_form(stage: FactorStage, sites: Sequence[WeightSite]) -> None:
    slices = [site for site in sites if site.expert is not None]
    if stage.writes_factors and slices:
        raise SecateurError(
            f"{slices[0].name} is a slice of a fused parameter and cannot become a low-rank layer; "
            "name it in `ignore`, or use `write: dense`"
        )
    others = [site for site in sites if not may_be_replaced(site)]
    if stage.writes_factors and others:
        raise SecateurError(
            f"{others[0].name} is a {others[0].class_name}, which does not compute what a linear "
            "layer does, and cannot become a low-rank layer; name it in `ignore`, or use "
            "`write: dense`"
        )
    if stage.method != "sparse-plus-low-rank":
        return
    misfits = [site for site in sites if site.shape[1] % SPARSE_PATTERN[1]]
    if misfits:
        raise SecateurError(
            f"expected K divisible by 4 for 2:4, got {misfits[0].name} with K = "
            f"{misfits[0].shape[1]}; name it in `ignore`"
        )
    dtypes = {site.parameter.dtype for site in sites} - {torch.bfloat16, torch.float16}
    if stage.writes_factors and dtypes:
        raise SecateurError(
            f"expected weights in bfloat16 or float16 to be packed as 2:4, got {dtypes.pop()}; "
            "load with another dtype, or use `write: dense`"
        )


def _storage(
    stage: FactorStage, sites: Sequence[WeightSite], ranks: Mapping[str, int | None]
) -> list[str]:
    """Complaints about factors that store more than the matrix they stand for."""
    if not stage.writes_factors or stage.joint:
        return []
    complaints = []
    for site in sites:
        rank = ranks.get(site.name)
        if rank is None:
            continue
        if stage.method == "sparse-plus-low-rank":
            complaint = _sparse_complaint(padded_rank(rank), site.shape)
        else:
            complaint = storage_complaint(padded_rank(rank), *site.shape)
        if complaint:
            complaints.append(f"{site.name}: {complaint}")
    return complaints


def _sparse_complaint(rank: int, shape: tuple[int, int]) -> str | None:
    """Half of the matrix is stored as 2:4 beside the factors."""
    most = break_even_rank(*shape) // 2
    if rank <= most:
        return None
    return (
        f"rank {rank} beside the 2:4 part of a weight {list(shape)} stores more than the dense "
        f"weight; the break-even rank is {most}"
    )
