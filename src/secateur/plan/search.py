"""What goes is tried on built models; a table of single changes only says what to try.

Changes lose more together than the sum of what each loses alone, and how much more depends on which
they are. So one begins with a selection that was built, lets the table name the best one that
differs from it by few removals, builds that, and moves there where it loses less by more than
chance. The ranks are the table's: they are the best for what is left and the time that is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, sqrt
from statistics import stdev

from secateur.plan.build import Bench, Trial, build_trial
from secateur.plan.measure import Measured
from secateur.plan.solve import Nearby, find, solve
from secateur.plan.table import Limit, Selection, Table, counted_by
from secateur.progress import Progress

# Removals that may be put back or added in one step: one may take the place of another.
_CHANGES = 2
# It ends when so many trials in a row were no better, or when all that is left is believed to lose
# so many times what the best one loses: beliefs err by less.
_PATIENCE = 6
_MARGIN = 1.5


def search(
    bench: Bench,
    measured: Measured,
    table: Table,
    limit: Limit,
    starts: Sequence[Trial],
    most: int,
    progress: Progress,
) -> Trial:
    """The best selection that is found within a limit, as a model.

    Args:
        bench: the dense model, in evaluation mode.
        measured: of it.
        table: the choices to select among, of `measured` or a part of it.
        limit: to keep to, by the table's times.
        starts: selections of the table that were built before, each perhaps of fewer forms than the
            table offers; empty: the table's best one.
        most: models to build beside that, at most.
        progress: told of each model built.

    Raises:
        SecateurError: the table has no selection within the limit.
    """
    progress.begin("build what may be best", 1 + most)
    if not starts:
        starts = (build_trial(bench, solve(table, limit)),)
    best = min(starts, key=lambda trial: trial.loss if isfinite(trial.loss) else inf)
    progress.advance(f"loss {best.loss:.4f}")
    tried = {removed(trial.selection) for trial in starts if _is_best_left(table, limit, trial)}
    dearer: dict[str, float] = {}
    misses = 0
    for _ in range(most):
        view = seen_from(table, best, measured.dense_loss, dearer)
        nearby = Nearby(removed(best.selection), _CHANGES, tuple(tried))
        selection = find(view, limit, nearby)
        rise = best.loss - measured.dense_loss
        if selection is None or selection.loss > _MARGIN * rise or misses == _PATIENCE:
            break
        trial = build_trial(bench, selection)
        progress.advance(f"loss {trial.loss:.4f}")
        new = removed(selection) - removed(best.selection)
        tried.add(removed(selection))
        if clearly_less(trial.losses, best.losses):
            best, misses = trial, 0
            continue
        misses += 1
        more = trial.loss - measured.dense_loss - selection.loss
        if not isfinite(more):
            continue
        for name in new:
            dearer[name] = dearer.get(name, 0.0) + max(0.0, more) / len(new)
    return best


def _is_best_left(table: Table, limit: Limit, trial: Trial) -> bool:
    """Whether the table has no other forms for what a built selection leaves."""
    best = find(table, limit, Nearby(removed(trial.selection), 0))
    built = {name: choice.form for name, choice in trial.selection.forms.items()}
    return best is None or built == {name: choice.form for name, choice in best.forms.items()}


def removed(selection: Selection) -> frozenset[str]:
    """Names of all that goes."""
    return frozenset(removal.name for removal in selection.removals)


def clearly_less(new: Sequence[float], old: Sequence[float]) -> bool:
    """Whether losses by sample are less by more than the standard error of their differences.

    What overflows, so that a loss is no number, is worse than anything that does not.
    """
    if not all(map(isfinite, (*new, *old))):
        return all(map(isfinite, new))
    gains = [before - after for before, after in zip(old, new, strict=True)]
    mean = sum(gains) / len(gains)
    return mean > (stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else 0.0)


def seen_from(table: Table, best: Trial, dense_loss: float, dearer: Mapping[str, float]) -> Table:
    """The table with losses that say of a built selection what it loses, if that is a number.

    Args:
        table: the choices.
        best: the built selection.
        dense_loss: of the dense model on the same samples.
        dearer: by removal: what it is believed to lose beside what the table says.
    """
    removals = tuple(
        replace(removal, loss=removal.loss + dearer.get(removal.name, 0.0))
        for removal in table.removals
    )
    table = replace(table, removals=removals)
    rise = best.loss - dense_loss
    if not isfinite(rise):
        return table
    counted = counted_by(table, best.selection)
    of_forms = sum(choice.loss for choice in counted.forms.values())
    growth = max(1.0, (rise - counted.loss + of_forms) / of_forms) if of_forms > 0 else 1.0
    units = tuple(
        replace(unit, choices=tuple(replace(c, loss=growth * c.loss) for c in unit.choices))
        for unit in table.units
    )
    grown = replace(table, units=units)
    return replace(grown, rest_loss=rise - counted_by(grown, best.selection).loss)
