import math

import pytest

from secateur.training.curve import curve


def test_a_point_at_the_start_and_one_for_each_evaluation() -> None:
    history = [
        {"loss": 4.0, "step": 10, "step_seconds": 1.0},
        {"loss": 1.0, "step": 15, "step_seconds": 1.5},
        {"eval_loss": 2.5, "num_input_tokens_seen": 1495, "step": 15, "step_seconds": 1.5},
        {"eval_loss": 2.25, "num_input_tokens_seen": 1995, "step": 20, "step_seconds": 2.0},
        {"loss": 3.0, "step": 21, "step_seconds": 2.5},
        {"eval_loss": 2.0, "num_input_tokens_seen": 2095, "step": 21, "step_seconds": 2.5},
        {"train_runtime": 3.0, "step": 21, "step_seconds": 2.5},
    ]
    points = curve(history, 5.0)
    assert [p.step for p in points] == [0, 15, 20, 21]
    assert [p.num_tokens for p in points] == [0, 1495, 1995, 2095]
    assert [p.seconds for p in points] == [0.0, 1.5, 2.0, 2.5]
    assert [p.held_out_loss for p in points] == [5.0, 2.5, 2.25, 2.0]
    # Ten steps of 4 and five of 1; none were logged before step 20.
    assert [p.train_loss for p in points] == [None, pytest.approx(3.0), None, 3.0]


def test_without_an_evaluation_there_is_the_start() -> None:
    (point,) = curve([{"loss": 4.0, "step": 1, "step_seconds": 1.0}], 5.0)
    assert (point.step, point.seconds, point.train_loss, point.held_out_loss) == (0, 0.0, None, 5.0)


def test_losses_that_are_no_numbers_stay_what_they_are() -> None:
    history = [
        {"loss": math.inf, "step": 1, "step_seconds": 1.0},
        {"eval_loss": math.nan, "num_input_tokens_seen": 95, "step": 1, "step_seconds": 1.0},
    ]
    point = curve(history, 5.0)[1]
    assert point.train_loss == math.inf
    assert math.isnan(point.held_out_loss)
