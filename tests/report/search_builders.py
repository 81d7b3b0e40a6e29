"""Synthetic searches: plausible, small, and the same on every call."""

import math
from typing import Any

from secateur.recipe.factor_stage import MatrixTypeName
from secateur.report.search_record import (
    AnalysisRecord,
    AnswerRecord,
    ChangeRecord,
    CutRecord,
    RankedRecord,
    ScoreRecord,
    SearchedModelRecord,
    SearchRecord,
    SearchTaskRecord,
    StateRecord,
    StepRecord,
    TrialRecord,
)

TYPES: tuple[MatrixTypeName, ...] = ("q", "v", "mlp_in", "mlp_out")
FRACTIONS = (0.9, 0.2, 0.05)
UNSEARCHED = ("v", 1)


def score(value: float, standard_error: float = 0.02) -> ScoreRecord:
    return ScoreRecord(value=value, standard_error=standard_error)


def cut(matrix: MatrixTypeName = "mlp_in", block: int = 2, fraction: float = 0.05) -> CutRecord:
    part = "mlp" if matrix.startswith("mlp") else "self_attn"
    return CutRecord(
        matrix=matrix,
        block=block,
        fraction=fraction,
        rank=max(1, int(256 * fraction)),
        name=f"model.layers.{block}.{part}.{matrix}_proj",
        shape=(256, 768),
    )


def change(improvement: float = 0.021, p_value: float = 0.013, **more: Any) -> ChangeRecord:
    values: dict[str, Any] = {
        "improvement": improvement,
        "standard_error": 0.009,
        "num_better": 21,
        "num_worse": 9,
        "p_value": p_value,
        "method": "McNemar, exact",
    }
    return ChangeRecord(**{**values, **more})


def state(name: Any, cuts: tuple[CutRecord, ...], validation: float, **more: Any) -> StateRecord:
    values: dict[str, Any] = {
        "validation": score(validation),
        "test": score(validation - 0.012),
        "groups": {},
        "change": None if name == "dense" else change(),
    }
    return StateRecord(name=name, cuts=cuts, **{**values, **more})


def trials(num_blocks: int = 4, sign: int = 1, dense: float = 0.6) -> tuple[TrialRecord, ...]:
    """One that helps in each block, others that harm; one matrix is not searched."""
    found = []
    for block in range(num_blocks):
        for number, matrix in enumerate(TYPES):
            if (matrix, block) == UNSEARCHED:
                continue
            for fraction in FRACTIONS:
                gain = 0.01 * (block + 1) * (0.5 - number) * (1 - fraction)
                trial = score(dense + sign * gain)
                found.append(TrialRecord(cut=cut(matrix, block, fraction), validation=trial))
    return tuple(found)


def search(num_blocks: int = 4, **changes: Any) -> SearchRecord:
    """A search that found two cuts; the first of three steps was replaced by the second."""
    first, second, third = cut(fraction=0.05), cut(fraction=0.2), cut("q", 1, 0.2)
    values: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 83.0,
        "versions": {"secateur": "0.1.0"},
        "machine": {"processor": "Example CPU"},
        "model": SearchedModelRecord(
            source="tiny", architecture="LlamaForCausalLM", num_blocks=num_blocks, dtype="float32"
        ),
        "task": task(),
        "options": {"seed": 0, "filter": None, "fractions": [0.9, 0.2], "analyse_items": 0},
        "fingerprint": {"model": "ab" * 32, "task": "cd" * 32},
        "notes": ("The fraction 0.01 leaves no rank in matrices of type v: not tried there.",),
        "ranking": (),
        "trials": trials(num_blocks),
        "num_composition_trials": 7,
        "steps": (
            StepRecord(cut=first, replaces=None, validation=score(0.61)),
            StepRecord(cut=second, replaces=0.05, validation=score(0.62)),
            StepRecord(cut=third, replaces=None, validation=score(0.64)),
        ),
        "states": (
            state("dense", (), 0.6),
            state("single", (first,), 0.615, change=change(0.004, 0.6)),
            state("composed", (second, third), 0.64),
        ),
    }
    return SearchRecord(**{**values, **changes})


def task(**changes: Any) -> SearchTaskRecord:
    values: dict[str, Any] = {
        "name": "pairs",
        "kind": "minimal pairs",
        "metric": "accuracy",
        "lower_is_better": False,
        "num_items": 804,
        "num_validation": 402,
        "num_test": 402,
    }
    return SearchTaskRecord(**{**values, **changes})


def nothing_found(**changes: Any) -> SearchRecord:
    """No cut was better than dense."""
    none = change(0.0, 1.0, num_better=0, num_worse=0)
    states = (
        state("dense", (), 0.6),
        state("single", (cut(),), 0.6, change=change(-0.01, 0.4)),
        state("composed", (), 0.6, change=none),
    )
    return search(states=states, steps=(), num_composition_trials=0, **changes)


def loss_search() -> SearchRecord:
    """A search by loss, with infinite and unknown numbers in it."""
    lost = TrialRecord(cut=cut("q", 0, 0.05), validation=score(math.inf, math.nan))
    unknown = TrialRecord(cut=cut("q", 0, 0.2), validation=score(math.nan, math.nan))
    rest = tuple(t for t in trials(sign=-1, dense=3.0) if (t.cut.matrix, t.cut.block) != ("q", 0))
    return search(
        task=task(metric="loss", lower_is_better=True, kind="cloze"),
        trials=(lost, unknown, *rest),
        states=(
            state("dense", (), 3.0),
            state("single", (cut(),), 2.97, change=change(0.01, math.nan)),
            state("composed", (cut(),), 2.95, change=change(0.04, 0.0004)),
        ),
    )


def full_search() -> SearchRecord:
    """Groups, a ranking and answers too."""
    groups = {"original": score(0.5), "paraphrase": score(0.4)}
    base = search()
    return search(
        states=tuple(
            StateRecord(
                name=s.name,
                cuts=s.cuts,
                validation=s.validation,
                test=s.test,
                groups=groups,
                change=s.change,
            )
            for s in base.states
        ),
        ranking=tuple(
            RankedRecord(
                matrix=matrix, block=block, fraction=0.05, predicted_change=change, is_kept=kept
            )
            for matrix, block, change, kept in (("q", 0, -0.2, True), ("v", 1, 0.1, False))
        ),
        analysis=AnalysisRecord(
            cuts=(cut(),),
            answers=(
                AnswerRecord(
                    prompt="The capital of France is",
                    expected="Paris",
                    dense="London",
                    kept="paris, the city",
                    discarded="",
                ),
                AnswerRecord(prompt="Once", expected=None, dense="a", kept="b", discarded="c"),
            ),
        ),
    )
