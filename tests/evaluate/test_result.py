import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.evaluate.result import exp_estimate, mean_estimate

LOSSES = st.lists(st.floats(0, 20), min_size=2, max_size=30)


@given(LOSSES)
def test_mean_is_numpys(values: list[float]) -> None:
    estimate = mean_estimate(values)
    assert estimate.value == pytest.approx(np.mean(values))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert estimate.standard_error == pytest.approx(error, abs=1e-12)


@given(LOSSES)
def test_exp_error_is_the_slope_times_the_error_of_the_mean(values: list[float]) -> None:
    mean, exponential = mean_estimate(values), exp_estimate(values)
    assert exponential.value == pytest.approx(math.exp(mean.value))
    assert exponential.standard_error == pytest.approx(exponential.value * mean.standard_error)


def test_exp_error_is_about_the_spread_of_repeated_measurements() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 0.4, size=(2000, 50))
    estimates = [exp_estimate(draw.tolist()) for draw in draws]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.standard_error for estimate in estimates]) == pytest.approx(
        spread, rel=0.05
    )


def test_accuracy_error_is_binomial() -> None:
    values = [1.0] * 7 + [0.0] * 3
    assert mean_estimate(values).standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 9))


@pytest.mark.parametrize("values", [[2.0], [math.inf, 1.0], [math.inf]])
def test_error_that_cannot_be_known_is_nan(values: list[float]) -> None:
    assert math.isnan(mean_estimate(values).standard_error)
    assert math.isnan(exp_estimate(values).standard_error)


def test_exp_of_a_large_loss_is_infinite() -> None:
    assert exp_estimate([800.0, 801.0]).value == math.inf
