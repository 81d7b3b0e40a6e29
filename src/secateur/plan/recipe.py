"""A selection as a recipe that `compress` runs."""

from collections.abc import Iterable

from secateur.models.blocks import BlockList
from secateur.models.matrix_types import is_fed
from secateur.plan.options import IMPORTANCE_SAMPLES
from secateur.plan.table import DENSE, SPARSE24, Part, Selection
from secateur.recipe import (
    DropBlocksStage,
    FactorStage,
    ImportanceName,
    PruneStage,
    RankOverride,
    Recipe,
)
from secateur.recipe.recipe import Stage


def plan_recipe(
    selection: Selection, blocks: BlockList, damping: float, importance: ImportanceName
) -> Recipe | None:
    """Stages that do what was selected: what goes, then 2:4, then factors of all ranks.

    What goes, goes first: what is left is then fitted to the inputs that it will see; what leads
    out of attention and MLP, also where it stays dense beside factors. Blocks are
    numbered anew once some are gone, and the names in later stages are those of the blocks then.

    Args:
        selection: what is done.
        blocks: of the dense model.
        damping: of Hessians.
        importance: of the factor stage.

    Returns:
        None where nothing is done.
    """
    stages: list[Stage] = []
    for part in ("attention", "mlp", "block"):
        gone = _gone(selection, part)
        if gone:
            stages.append(DropBlocksStage(blocks=gone, granularity=part))
    names = later_names(selection, blocks)
    by_form: dict[str, list[str]] = {}
    for unit, choice in selection.forms.items():
        by_form.setdefault(choice.form, []).append(names[unit])
    if SPARSE24 in by_form:
        stages.append(
            PruneStage(
                method="sparsegpt",
                pattern=SPARSE24,
                targets=tuple(by_form[SPARSE24]),
                damping=damping,
            )
        )
    ranks = _ranks(selection)
    if ranks:
        stages.append(_factors(ranks, by_form, damping, importance))
    return Recipe(stages=tuple(stages)) if stages else None


def _factors(
    ranks: list[tuple[str, int]],
    by_form: dict[str, list[str]],
    damping: float,
    importance: ImportanceName,
) -> FactorStage:
    """One pass, in which every matrix is fitted to what the ones before it give."""
    (_, most), *others = ranks
    forms: list[tuple[tuple[str, ...], int | None]]
    forms = [(tuple(by_form[form]), rank) for form, rank in others]
    if fitted := tuple(name for name in by_form.get(DENSE, ()) if is_fed(name)):
        forms.append((fitted, None))
    return FactorStage(
        rank=most,
        targets=(*by_form[ranks[0][0]], *(name for names, _ in forms for name in names)),
        overrides=tuple(RankOverride(targets=names, rank=rank) for names, rank in forms),
        damping=damping,
        importance=importance,
        importance_samples=IMPORTANCE_SAMPLES,
        in_turn=True,
    )


def _gone(selection: Selection, part: Part) -> tuple[int, ...]:
    return tuple(sorted(entry.block for entry in selection.removals if entry.part == part))


def _ranks(selection: Selection) -> list[tuple[str, int]]:
    found = {
        (choice.form, choice.rank)
        for choice in selection.forms.values()
        if choice.form != DENSE and choice.rank is not None
    }
    return sorted(found, key=lambda entry: -entry[1])


def later_names(selection: Selection, blocks: BlockList) -> dict[str, str]:
    """By name in the dense model: the name once whole blocks are gone."""
    gone = set(_gone(selection, "block"))
    kept = [index for index in range(len(blocks)) if index not in gone]
    renamed: dict[str, str] = {}
    for new, old in enumerate(kept):
        renamed |= _under(blocks.block_name(old), blocks.block_name(new), selection.forms)
    return renamed


def _under(old: str, new: str, names: Iterable[str]) -> dict[str, str]:
    found = [name for name in names if name.startswith(f"{old}.")]
    return {name: new + name.removeprefix(old) for name in found}
