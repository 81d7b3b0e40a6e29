"""Build the best selection of a table, look at what choices lose beside it, and select again."""

from dataclasses import dataclass, replace

from secateur.models.device import full_precision_products
from secateur.plan.around import ranks_near, table_around
from secateur.plan.build import Bench, Built, build_within, held_out_loss, is_within_reach
from secateur.plan.imitate import imitated
from secateur.plan.losses import Losses, measure_losses
from secateur.plan.measure import Measured, Scene
from secateur.plan.table import SPARSE24, Limit, Table
from secateur.progress import Progress


@dataclass(frozen=True)
class Best:
    """The best model that was built."""

    built: Built
    losses: tuple[float, ...]
    """Held-out losses of all that were built, the first selection's first; nats a token."""


def best_within(
    bench: Bench,
    measured: Measured,
    table: Table,
    limit: Limit,
    refinements: int,
    progress: Progress,
) -> Best:
    """The best model found within a limit: one by the table, then better ones near it.

    Args:
        bench: the dense model, in evaluation mode.
        measured: of it.
        table: the choices to select among, of `measured` or a part of it.
        limit: to keep to.
        refinements: how often losses are measured again, at most; it ends when what is selected
            then loses no less, or where by the times of what was built nothing keeps to the limit.
        progress: told how far it is.

    Raises:
        SecateurError: the table has no selection within the limit.
    """
    progress.begin("build the plan", 1)
    best = build_within(bench, table, limit)
    losses = [loss := held_out_loss(bench, best.model)]
    progress.advance(f"loss {loss:.4f}")
    for _ in range(refinements if best.recipe is not None else 0):
        if not is_within_reach(best.table, limit):  # by its times as built
            break
        beside = losses_beside(bench, measured.scene, best, progress)
        moved = table_around(best.table, best.selection, beside, measured.dense_loss)
        progress.begin("build a better plan", 1)
        other = build_within(bench, moved, limit)
        losses.append(other_loss := held_out_loss(bench, other.model))
        progress.advance(f"loss {other_loss:.4f}")
        if best.keeps_to(limit) and not (other.keeps_to(limit) and other_loss < loss):
            break
        best, loss = other, other_loss
    return Best(best, tuple(losses))


def losses_beside(bench: Bench, scene: Scene, built: Built, progress: Progress) -> Losses:
    """What single changes to a built model lose, measured on the dense model made to do the same.

    The dense model is as it was afterwards.
    """
    blocks, gone = scene.inventory.blocks, built.selection.removals
    sublayers = scene.asked.sublayers
    with (
        full_precision_products(),
        imitated(
            built.selection, built.model, scene.sites, blocks, scene.forms, sublayers
        ) as dense_weights,
    ):
        asked = replace(
            scene.asked,
            ranks=ranks_near(built.table, built.selection),
            with_sparse24=any(c.form == SPARSE24 for u in built.table.units for c in u.choices),
            removals=bool(built.table.removals),
            dense_weights=dense_weights,
            removed={removal.block: removal.part for removal in gone},
        )
        return measure_losses(
            bench.model,
            scene.inventory,
            asked,
            bench.tokens,
            bench.damping,
            bench.device,
            progress,
        )
