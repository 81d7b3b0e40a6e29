"""What choices cost beside those of a plan: the table of a model, seen from a plan of it.

Losses of single changes to the dense model add up to too little: two changes lose more together
than each does alone. So they are measured again as single changes to the plan's model, and the
table is moved there: it says exactly what the plan loses, and to first order what plans near it do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from secateur.plan.losses import Losses
from secateur.plan.table import DENSE, Choice, Removal, Selection, Table, Unit, select

# Ranks on either side of a plan's that are measured beside it.
_REACH = 1


def ranks_near(table: Table, selection: Selection) -> dict[str, Sequence[int]]:
    """By unit that is left: ranks next to the one chosen, which is known; dense counts as more."""
    return {
        unit.name: _near(unit, selection.forms[unit.name])
        for unit in table.units
        if unit.name in selection.forms
    }


def _near(unit: Unit, chosen: Choice) -> tuple[int, ...]:
    ranks = sorted(choice.rank for choice in unit.choices if choice.rank is not None)
    if chosen.rank is None:
        return tuple(ranks[len(ranks) - _REACH :])
    place = ranks.index(chosen.rank)
    near = ranks[max(0, place - _REACH) : place + _REACH + 1]
    return tuple(rank for rank in near if rank != chosen.rank)


def table_around(table: Table, selection: Selection, losses: Losses, dense_loss: float) -> Table:
    """The table with losses as they are beside a plan's other choices.

    What was not measured there costs what it did in the table, and more by as much as the plan's
    own choices cost more there than they did in the table.

    Args:
        table: losses of single changes to the dense model, or to another plan's.
        selection: the plan.
        losses: of single changes to its model, of dense for each matrix that the plan changes, and
            of what it removes put back.
        dense_loss: of the dense model on the same tokens.
    """
    growth = _growth(table, selection, losses)
    units = {
        unit.name: replace(
            unit, choices=_choices(unit, selection.forms.get(unit.name), losses, growth)
        )
        for unit in table.units
    }
    removals = tuple(
        replace(removal, loss=_removal_loss(removal, selection, units, losses))
        for removal in table.removals
    )
    moved = replace(table, units=tuple(units.values()), removals=removals, rest_loss=0.0)
    rest = losses.start - dense_loss - counted_by(moved, selection).loss
    return replace(moved, rest_loss=rest)


def counted_by(table: Table, selection: Selection) -> Selection:
    """The same choices as another table of the same model counts them."""
    gone = {removal.name for removal in selection.removals}
    return select(
        table,
        {name: choice.form for name, choice in selection.forms.items()},
        [removal for removal in table.removals if removal.name in gone],
    )


def _growth(table: Table, selection: Selection, losses: Losses) -> float:
    """What a plan's factors lose beside each other over what the table says; at least 1."""
    alone = sum(choice.loss for choice in counted_by(table, selection).forms.values())
    beside = sum(
        losses.start - losses.forms[name, DENSE]
        for name, choice in selection.forms.items()
        if choice.form != DENSE
    )
    return max(1.0, beside / alone) if alone > 0 else 1.0


def _choices(
    unit: Unit, chosen: Choice | None, losses: Losses, growth: float
) -> tuple[Choice, ...]:
    if chosen is None:  # Its block or part of it is gone, and its forms could not be tried.
        return tuple(replace(choice, loss=growth * choice.loss) for choice in unit.choices)
    known = _rises(unit, chosen, losses)
    found: dict[str, Choice] = {}
    most = 0.0
    for choice in sorted(unit.choices, key=_size, reverse=True):
        loss = known.get(choice.form)
        if loss is None:
            near = min(
                (other for other in unit.choices if other.form in known),
                key=lambda other: abs(_size(other) - _size(choice)),
            )
            loss = known[near.form] + growth * (choice.loss - near.loss)
        if choice.rank is not None:
            # A larger rank holds the smaller one: where it measures worse, that is chance.
            loss = most = max(most, loss)
        found[choice.form] = replace(choice, loss=max(0.0, loss))
    return tuple(found[choice.form] for choice in unit.choices)


def _rises(unit: Unit, chosen: Choice, losses: Losses) -> dict[str, float]:
    """By form: the loss above the one with this matrix dense."""
    measured = {
        choice.form: losses.forms[unit.name, choice.form]
        for choice in unit.choices
        if (unit.name, choice.form) in losses.forms
    }
    measured[chosen.form] = losses.start
    return {form: loss - measured[DENSE] for form, loss in measured.items()}


def _size(choice: Choice) -> int:
    """To order ranks by; dense and 2:4 are far from all of them, and apart."""
    if choice.rank is not None:
        return choice.rank
    return 10**9 if choice.form == DENSE else 2 * 10**9


def _removal_loss(
    removal: Removal, selection: Selection, units: Mapping[str, Unit], losses: Losses
) -> float:
    """Above what its block loses with nothing removed and these matrices dense."""
    present = losses.restored.get(removal.block, losses.start)
    loss = losses.removals[removal.block, removal.part] - present
    for name in removal.units:
        if name in selection.forms:
            form = selection.forms[name].form
            loss += next(choice.loss for choice in units[name].choices if choice.form == form)
    return max(0.0, loss)
