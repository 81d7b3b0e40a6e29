"""Dense, best single and composed: each on both splits, and against dense on the test split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from secateur.lowrank import Intervention
from secateur.report.search_record import CutRecord, ScoreRecord, StateRecord
from secateur.search.compose import Cuts
from secateur.search.significance import clustered_mean, paired_change
from secateur.search.trials import SplitMeasure, Trials

StateName = Literal["dense", "single", "composed"]


def state_records(
    states: Mapping[StateName, Cuts],
    trials: Trials,
    validation: SplitMeasure,
    test: SplitMeasure,
    groups: Sequence[str],
    lower_is_better: bool,
    record: Callable[[Intervention], CutRecord],
) -> tuple[StateRecord, ...]:
    """Measure each state on the test split.

    Args:
        states: the dense model first.
        trials: measures.
        validation: where every state was measured already.
        test: keeps values.
        groups: of the test items; blank where there are none.
        lower_is_better: of the metric.
        record: a cut as the record has it.
    """
    measured = {name: trials.measure(cuts, test) for name, cuts in states.items()}
    dense = measured["dense"].values
    return tuple(
        StateRecord(
            name=name,
            cuts=tuple(map(record, cuts)),
            validation=trials.measure(cuts, validation).score,
            test=measured[name].score,
            groups=_group_scores(measured[name].values, groups, test.units),
            change=(
                paired_change(dense, measured[name].values, test.units, lower_is_better)
                if name != "dense"
                else None
            ),
        )
        for name, cuts in states.items()
    )


def _group_scores(
    values: Sequence[float], groups: Sequence[str], units: Sequence[int]
) -> dict[str, ScoreRecord]:
    found = {}
    for group in dict.fromkeys(filter(None, groups)):
        chosen = [index for index, other in enumerate(groups) if other == group]
        score = clustered_mean([values[i] for i in chosen], [units[i] for i in chosen])
        found[group] = ScoreRecord(value=score.value, standard_error=score.standard_error)
    return found
