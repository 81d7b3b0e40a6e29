import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import QualityDropError, SecateurError
from secateur.evaluate.compare import Drop, check_drop, compare_perplexity, compare_task
from secateur.evaluate.perplexity import PerplexityResult
from secateur.evaluate.result import Estimate, TaskResult, exp_estimate, mean_estimate


def perplexity_of(losses: list[float]) -> PerplexityResult:
    value, error = exp_estimate(losses)
    return PerplexityResult(value, error, 7 * len(losses), 8, tuple(losses))


def accuracy_of(*values: float) -> TaskResult:
    return TaskResult("t", {"acc": mean_estimate(values)}, len(values), {"acc": values})


def cloze_of(*losses: float) -> TaskResult:
    return TaskResult(
        "t", {"perplexity": exp_estimate(losses)}, len(losses), {"perplexity": losses}
    )


def drop_of(value: float, metric: str = "acc") -> Drop:
    return Drop(metric, 0.5, 0.5 - value, value, 0.01, is_relative=False)


PAIRED = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=2, max_size=20)


@given(PAIRED)
def test_perplexity_drop_is_the_ratio(pairs: list[tuple[float, float]]) -> None:
    before, after = (perplexity_of(list(losses)) for losses in zip(*pairs, strict=True))
    drop = compare_perplexity(before, after)
    ratio = after.perplexity / before.perplexity
    assert drop.drop == pytest.approx(ratio - 1, abs=1e-9)
    differences = np.subtract(after.window_losses, before.window_losses)
    error = np.std(differences, ddof=1) / math.sqrt(len(pairs))
    assert drop.standard_error == pytest.approx(ratio * error, abs=1e-9)
    assert drop.is_relative


def test_paired_error_is_small_where_both_find_the_same_windows_hard() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(3, 1, 40)
    after = before + 0.1 + rng.normal(0, 0.01, 40)
    left, right = perplexity_of(before.tolist()), perplexity_of(after.tolist())
    drop = compare_perplexity(left, right, "books")
    assert drop.drop == pytest.approx(math.exp(0.1) - 1, abs=0.01)
    assert drop.standard_error < 0.003 < left.standard_error / left.perplexity
    assert drop.metric == "books"


def test_broken_model_falls_without_bound() -> None:
    drop = compare_perplexity(perplexity_of([1.0, 2.0]), perplexity_of([math.inf, 2.0]))
    assert drop.drop == math.inf
    assert math.isnan(drop.standard_error)
    with pytest.raises(QualityDropError, match=r"perplexity: 4\.482 -> inf"):
        check_drop([drop], 10)


@pytest.mark.parametrize("length", [7, 8])
def test_other_windows_are_refused(length: int) -> None:
    other = replace(perplexity_of([1.0] * (10 - length)), max_seq_length=length)
    with pytest.raises(SecateurError, match="expected 4 windows of 8 tokens as in the baseline"):
        compare_perplexity(perplexity_of([1.0] * 4), other)


def test_other_tokens_in_as_many_windows_are_refused() -> None:
    one = perplexity_of([1.0] * 4)
    with pytest.raises(SecateurError, match="expected the same tokens for books as in the basel"):
        compare_perplexity(one, replace(one, tokens_sha256="of another tokenizer"), "books")


def test_broken_baseline_is_refused() -> None:
    broken = perplexity_of([math.inf, 1.0])
    with pytest.raises(SecateurError, match="a baseline with a finite perplexity, but it is inf"):
        compare_perplexity(broken, broken)
    with pytest.raises(SecateurError, match="a baseline with a finite t perplexity"):
        compare_task(cloze_of(math.inf, 1.0), cloze_of(1.0, 1.0), "perplexity")


def test_accuracy_drop_is_absolute_and_paired() -> None:
    before, after = accuracy_of(1, 1, 1, 0, 1), accuracy_of(1, 0, 1, 1, 0)
    drop = compare_task(before, after)
    differences = [0, 1, 0, -1, 1]
    assert (drop.metric, drop.is_relative) == ("t acc", False)
    assert drop.drop == pytest.approx(np.mean(differences))
    assert drop.standard_error == pytest.approx(np.std(differences, ddof=1) / math.sqrt(5))
    assert compare_task(before, before).standard_error == 0


def test_accuracy_without_items_has_the_error_of_independent_results() -> None:
    before, after = accuracy_of(1, 1, 1, 0, 1), replace(accuracy_of(1, 0, 1, 1, 0), per_item={})
    errors = [result.metrics["acc"].standard_error for result in (before, after)]
    drop = compare_task(before, after)
    assert drop.standard_error == pytest.approx(math.sqrt(errors[0] ** 2 + errors[1] ** 2))


def test_task_perplexity_is_relative() -> None:
    before, after = cloze_of(1.0, 2.0, 4.0), cloze_of(1.5, 2.0, 4.5)
    paired = compare_task(before, after, "perplexity")
    assert paired.is_relative
    assert paired.drop == pytest.approx(math.exp(1 / 3) - 1)
    apart = compare_task(replace(before, per_item={}), after, "perplexity")
    assert apart.drop == pytest.approx(paired.drop)
    # Errors of both logarithms are 0.8819 and 0.9280; the ratio is exp(1/3).
    assert apart.standard_error == pytest.approx(math.exp(1 / 3) * math.hypot(0.8819, 0.9280), 1e-3)


def test_lower_metric_may_be_zero_in_the_other() -> None:
    def brier(value: float) -> TaskResult:
        metrics = {"brier_score": Estimate(value, 0.1)}
        return TaskResult("t", metrics, 5, lower_is_better=frozenset(metrics))

    drop = compare_task(brier(0.5), brier(0.0), "brier_score")
    assert drop.drop == -1
    assert drop.standard_error == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("baseline", "other", "metric", "message"),
    [
        (accuracy_of(1, 0), accuracy_of(1), "acc", "2 items of t as in the baseline, but got 1 of"),
        (accuracy_of(1), replace(accuracy_of(1), name="u"), "acc", "but got 1 of u"),
        (accuracy_of(1), accuracy_of(1), "f1", "expected f1 in the baseline of t, but it has acc"),
        (cloze_of(1), accuracy_of(1), "perplexity", "perplexity in the other result of t, but it"),
    ],
)
def test_results_that_do_not_match_are_refused(
    baseline: TaskResult, other: TaskResult, metric: str, message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        compare_task(baseline, other, metric)


def test_small_drop_passes() -> None:
    check_drop([drop_of(0.05), drop_of(-0.2)], max_drop=0.05)
    check_drop([], 0)


def test_every_large_drop_is_listed() -> None:
    relative = compare_perplexity(perplexity_of([3.0, 3.2]), perplexity_of([3.1, 3.5]))
    with pytest.raises(QualityDropError) as caught:
        check_drop([drop_of(0.06, "a acc"), drop_of(0.01, "b acc"), relative], 0.05)
    assert str(caught.value) == (
        "expected no metric to fall by more than 5%, but got "
        "a acc: 0.5 -> 0.44, +6.00 ± 1.00 points worse; "
        "perplexity: 22.2 -> 27.11, +22.14 ± 12.21% worse"
    )


def test_drop_that_is_not_a_number_fails() -> None:
    with pytest.raises(QualityDropError, match="acc"):
        check_drop([drop_of(math.nan)], 1)


@pytest.mark.parametrize("max_drop", [-0.1, math.nan, math.inf])
def test_bad_limit_is_refused(max_drop: float) -> None:
    with pytest.raises(SecateurError, match="a largest drop of 0 or more, but got"):
        check_drop([], max_drop)
