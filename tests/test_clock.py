import pytest

from secateur import clock
from secateur.clock import StepClock


class FakeTime:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clock, "perf_counter", fake)
    return fake


def test_nothing_has_run_yet() -> None:
    assert StepClock().seconds() == {}


def test_seconds_add_up_by_name(time: FakeTime) -> None:
    steps = StepClock()
    for name, seconds in (("load", 2.0), ("prune", 5.0), ("load", 0.5)):
        with steps.step(name):
            time.now += seconds
        time.now += 100.0  # between steps, and not counted
    assert steps.seconds() == {"load": 2.5, "prune": 5.0}
    assert list(steps.seconds()) == ["load", "prune"]


def test_running_step_counts_up_to_now(time: FakeTime) -> None:
    steps = StepClock()
    with steps.step("load"):
        time.now += 1.0
    with steps.step("prune"):
        time.now += 3.0
        assert list(steps.seconds().items()) == [("load", 1.0), ("prune", 3.0)]
        time.now += 1.0
        assert steps.seconds()["prune"] == 4.0
    assert steps.seconds() == {"load": 1.0, "prune": 4.0}
    with steps.step("load"):
        time.now += 2.0
        assert steps.seconds() == {"load": 3.0, "prune": 4.0}
    assert steps.seconds() == {"load": 3.0, "prune": 4.0}


def test_step_that_fails_is_counted(time: FakeTime) -> None:
    steps = StepClock()

    def fail() -> None:
        with steps.step("load"):
            time.now += 2.0
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fail()
    time.now += 50.0
    assert steps.seconds() == {"load": 2.0}


def test_steps_inside_others_are_counted_by_both(time: FakeTime) -> None:
    steps = StepClock()
    with steps.step("outer"):
        time.now += 1.0
        with steps.step("inner"):
            time.now += 2.0
        time.now += 4.0
    assert steps.seconds() == {"outer": 7.0, "inner": 2.0}


def test_what_is_given_out_is_a_copy(time: FakeTime) -> None:
    steps = StepClock()
    with steps.step("load"):
        time.now += 2.0
    steps.seconds()["load"] = 0.0
    assert steps.seconds() == {"load": 2.0}


def test_order_is_that_in_which_steps_began(time: FakeTime) -> None:
    steps = StepClock()
    with steps.step("outer"), steps.step("inner"):
        time.now += 1.0
    assert list(steps.seconds()) == ["outer", "inner"]
