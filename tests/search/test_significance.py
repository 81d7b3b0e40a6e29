import math
import random

import pytest

from secateur.errors import SecateurError
from secateur.evaluate.result import mean_estimate
from secateur.search.significance import clustered_mean, paired_change


def test_of_single_items_the_error_is_the_usual_one() -> None:
    rng = random.Random(0)
    values = [rng.gauss(1, 2) for _ in range(37)]
    found = clustered_mean(values, range(37))
    assert found == pytest.approx(mean_estimate(values), rel=1e-12)


def test_copies_of_an_item_bring_no_certainty() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    copied = clustered_mean(
        [v for v in values for _ in range(4)],
        [unit for unit in range(5) for _ in range(4)],
    )
    assert copied == pytest.approx(mean_estimate(values), rel=1e-12)


def test_what_cannot_be_known_is_nan() -> None:
    assert math.isnan(clustered_mean([1.0, 2.0], [3, 3]).standard_error)
    infinite = clustered_mean([1.0, math.inf], [0, 1])
    assert infinite.value == math.inf
    assert math.isnan(infinite.standard_error)


def test_mcnemar_counts_the_items_that_differ() -> None:
    before = [1.0] * 1 + [0.0] * 5 + [1.0] * 10
    after = [0.0] * 1 + [1.0] * 5 + [1.0] * 10
    change = paired_change(before, after, range(16), lower_is_better=False)
    assert (change.num_better, change.num_worse) == (5, 1)
    assert change.improvement == pytest.approx(4 / 16)
    # 2 * (C(6, 0) + C(6, 1)) / 2^6.
    assert change.p_value == pytest.approx(14 / 64)
    assert change.method == "McNemar, exact"
    same = paired_change(before, before, range(16), lower_is_better=False)
    assert (same.improvement, same.p_value) == (0.0, 1.0)


def test_losses_are_compared_by_their_differences() -> None:
    rng = random.Random(1)
    before = [rng.gauss(5, 3) for _ in range(200)]
    after = [value - 0.1 + rng.gauss(0, 0.5) for value in before]
    change = paired_change(before, after, range(200), lower_is_better=True)
    differences = [a - b for a, b in zip(before, after, strict=True)]
    mean, error = mean_estimate(differences)
    assert change.improvement == pytest.approx(mean)
    assert change.standard_error == pytest.approx(error)
    z = mean / error
    assert change.p_value == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert change.method == "paired differences"
    worse = paired_change(after, before, range(200), lower_is_better=True)
    assert worse.improvement == pytest.approx(-mean)


def test_items_of_one_unit_are_not_counted_as_independent() -> None:
    before, after = [0.0, 1.0] * 8, [1.0, 1.0] * 8
    units = [index // 2 for index in range(16)]
    change = paired_change(before, after, units, lower_is_better=False)
    assert change.method == "paired differences"
    assert change.num_better == 8


def test_p_values_that_cannot_be_known() -> None:
    constant = paired_change([0.0, 0.0], [0.5, 0.5], [0, 1], lower_is_better=False)
    assert math.isnan(constant.p_value)
    infinite = paired_change([1.0, 1.0], [math.inf, 1.0], [0, 1], lower_is_better=True)
    assert infinite.improvement == -math.inf
    assert math.isnan(infinite.p_value)


def test_many_items_do_not_overflow() -> None:
    change = paired_change([0.0] * 5000, [1.0] * 5000, range(5000), lower_is_better=False)
    assert change.p_value == 0.0


def test_refuses_other_items() -> None:
    with pytest.raises(SecateurError, match="values of the same items, but got 2, 1 and units"):
        paired_change([1.0, 2.0], [1.0], [0, 1], lower_is_better=False)
