"""What a search found, in numbers as text and in sentences."""

import math
from typing import Literal

from secateur.report.search_record import (
    ChangeRecord,
    CutRecord,
    ScoreRecord,
    SearchRecord,
    SearchTaskRecord,
    StateRecord,
)
from secateur.report.table import MISSING, format_number, listed

Verdict = Literal["none", "better", "unclear", "worse"]
"""Nothing chosen; better on the test split beyond chance; not told apart from dense; worse beyond
chance."""

SIGNIFICANT = 0.05
_STATES = {"dense": "Dense", "single": "Best single cut", "composed": "Composed"}
_TYPES = {"mlp_in": "MLP in", "mlp_up": "MLP up", "mlp_out": "MLP out"}


def is_fraction(task: SearchTaskRecord) -> bool:
    """Whether scores are fractions of items, shown as percentages."""
    return task.metric in ("accuracy", "generation") or task.kind == "lm-eval"


def format_score(task: SearchTaskRecord, value: float) -> str:
    """`71.5%` or `3.412`."""
    if is_fraction(task) and math.isfinite(value):
        return f"{100 * value:.1f}%"
    return format_number(value, 3)


def format_estimate(task: SearchTaskRecord, score: ScoreRecord) -> str:
    """`71.5% ± 2.1`, or `3.412 ± 0.050`."""
    scale, digits = (100, 1) if is_fraction(task) else (1, 3)
    error = format_number(scale * score.standard_error, digits)
    return f"{format_score(task, score.value)} ± {error}"


def format_improvement(task: SearchTaskRecord, value: float) -> str:
    """With its sign, positive is better: `+1.2 points`, `+0.031`."""
    if not is_fraction(task) or not math.isfinite(value):
        return f"+{format_number(value, 3)}" if value > 0 else format_number(value, 3)
    return f"{100 * value:+.1f} points"


def format_change(task: SearchTaskRecord, change: ChangeRecord | None) -> str:
    """`+1.2 ± 0.8 points`, or a dash for the dense model."""
    if change is None:
        return MISSING
    scale, digits = (100, 1) if is_fraction(task) else (1, 3)
    value = format_improvement(task, change.improvement).removesuffix(" points")
    unit = " points" if is_fraction(task) else ""
    return f"{value} ± {format_number(scale * change.standard_error, digits)}{unit}"


def by_words(task: SearchTaskRecord, value: float, error: float | None = None) -> str:
    """`better by 1.2 ± 0.8 points`, `worse by 0.031`, `no better and no worse`."""
    if value == 0 or math.isnan(value):
        return "not comparable" if math.isnan(value) else "no better and no worse"
    scale, digits, unit = (100, 1, " points") if is_fraction(task) else (1, 3, "")
    amount = format_number(scale * abs(value), digits)
    around = "" if error is None else f" ± {format_number(scale * error, digits)}"
    return f"{'better' if value > 0 else 'worse'} by {amount}{around}{unit}"


def _change_words(task: SearchTaskRecord, change: ChangeRecord) -> str:
    return by_words(task, change.improvement, change.standard_error)


def format_p(change: ChangeRecord | None) -> str:
    """`0.21`, `< 0.001`, or a dash where it is not known."""
    if change is None or math.isnan(change.p_value):
        return MISSING
    return "< 0.001" if change.p_value < 0.001 else f"{change.p_value:.2g}"


def state_title(name: str) -> str:
    """A state as a heading."""
    return _STATES.get(name, name)


def type_title(matrix: str) -> str:
    """A matrix type as a heading."""
    return _TYPES.get(matrix, matrix)


def cut_words(cut: CutRecord) -> str:
    """`MLP in of block 3 at 5% of its rank`."""
    return f"{type_title(cut.matrix)} of block {cut.block} at {100 * cut.fraction:g}% of its rank"


def verdict(record: SearchRecord) -> Verdict:
    """Whether the composed cuts hold on the test split."""
    change = record.state("composed").change
    if not record.is_found or change is None:
        return "none"
    if change.p_value < SIGNIFICANT:
        return "better" if change.improvement > 0 else "worse"
    return "unclear"


def headline(record: SearchRecord) -> str:
    """The result in a sentence or two, as it is."""
    task, composed = record.task, record.state("composed")
    change = composed.change
    found = verdict(record)
    if found == "none" or change is None:
        return (
            f"No cut made {record.model.source} better at {task.name}: none of "
            f"{_trials(len(record.trials))} beat the dense model on the validation split, "
            "and nothing was chosen."
        )
    scores = (
        f"{task.metric} {format_score(task, record.state('dense').test.value)} dense, "
        f"{format_score(task, composed.test.value)} with {_cuts(composed)} "
        f"({_change_words(task, change)}, p {_p_words(change)})"
    )
    if found == "better":
        return f"Cutting rank helps on held-out items of {task.name}: {scores}."
    if found == "worse":
        return (
            f"What was chosen on the validation split makes {task.name} worse on held-out items: "
            f"{scores}. Do not use it."
        )
    where = "at or above dense" if change.improvement >= 0 else "below dense"
    return (
        f"On held-out items of {task.name} the chosen cuts are {where}, but not beyond chance: "
        f"{scores}."
    )


def findings(record: SearchRecord) -> list[str]:
    """What else the numbers say, a sentence each."""
    task, single = record.task, record.state("single")
    dense = record.state("dense").validation.value
    sign = -1 if task.lower_is_better else 1
    better = sum(sign * (trial.validation.value - dense) > 0 for trial in record.trials)
    sentences = [
        f"{better} of {_trials(len(record.trials))} beat the dense model on the "
        f"{task.num_validation} validation items.",
        _single_sentence(task, single, dense, sign),
    ]
    if len(record.state("composed").cuts) > 1:
        sentences.append(_composed_sentence(record, sign))
    return sentences


def _single_sentence(task: SearchTaskRecord, single: StateRecord, dense: float, sign: int) -> str:
    assert single.change is not None
    gain = by_words(task, sign * (single.validation.value - dense))
    return (
        f"The best single cut is {cut_words(single.cuts[0])}: {gain} on validation, "
        f"{_change_words(task, single.change)} on the test split, p {_p_words(single.change)}."
    )


def _composed_sentence(record: SearchRecord, sign: int) -> str:
    task, single, composed = record.task, record.state("single"), record.state("composed")
    more = by_words(task, sign * (composed.validation.value - single.validation.value))
    test = by_words(task, sign * (composed.test.value - single.test.value))
    return (
        f"Against the best single cut, {_cuts(composed)} together are {more} on validation, and "
        f"{test} on the test split."
    )


def cautions(record: SearchRecord) -> list[str]:
    """What a reader must know before believing it."""
    sentences = []
    if record.is_found:
        sentences.append(
            f"The validation scores of what was chosen are the best of "
            f"{_trials(len(record.trials) + record.num_composition_trials)}, and flattered by "
            "that; only the test split, which chose nothing, is a fair measure."
        )
        sentences.append(
            "The cuts are multiplied back into full matrices, as published: they change what the "
            "model answers, and save neither memory nor time."
        )
    names = {"single": "the best single cut", "composed": "the composition"}
    worse = [
        names[state.name]
        for state in record.states
        if state.change is not None and state.cuts and state.change.improvement < 0
    ]
    if record.is_found and worse:
        sentences.append(f"On the test split, {listed(worse)} scored below the dense model.")
    return [*sentences, *record.notes]


def _p_words(change: ChangeRecord | None) -> str:
    shown = format_p(change)
    return shown if shown.startswith("<") else "not known" if shown == MISSING else f"= {shown}"


def _cuts(state: StateRecord) -> str:
    return "1 cut" if len(state.cuts) == 1 else f"{len(state.cuts)} cuts"


def _trials(number: int) -> str:
    return "1 trial" if number == 1 else f"{number:,} trials"
