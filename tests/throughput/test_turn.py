"""From the moments of tokens to figures, and quantiles."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.throughput.statistics import quantile
from secateur.throughput.turn import Turn, Workload, check_turn, summarise

# Two sequences; the second has its first token when the first has two.
TURN = Turn(((1.0, 3.0, 4.0, 6.0), (2.0, 4.0, 5.0, 8.0)), 500)
LATER = Turn(((2.0, 4.0, 6.0, 8.0), (2.0, 4.0, 6.0, 8.0)), 700)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.001, 1.0))
def test_quantiles_leave_the_right_part_above(values: list[float], fraction: float) -> None:
    found = quantile(values, fraction)
    assert found in values
    assert sum(value <= found for value in values) >= fraction * len(values) - 1e-9
    smaller = [value for value in values if value < found]
    assert len(smaller) < fraction * len(values)


@pytest.mark.parametrize(("values", "fraction"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_quantiles_of_nothing_are_refused(values: list[float], fraction: float) -> None:
    with pytest.raises(SecateurError, match="expected values and a fraction above 0"):
        quantile(values, fraction)


def test_gaps_count_once_every_prompt_is_done() -> None:
    assert TURN.prefill_seconds == 2.0
    assert TURN.seconds == 8.0
    # 1.0 to 3.0 spans the second prompt: it is no gap of decoding.
    assert sorted(TURN.gaps()) == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert TURN.decode_tokens_per_second() == pytest.approx(6 / 6.0)


def test_figures_are_of_all_turns() -> None:
    found = summarise("m", "engine", Workload(2, 10, 4), [TURN, LATER])
    assert (found.time_to_first_token.p50, found.time_to_first_token.p99) == (2.0, 2.0)
    assert found.time_per_output_token is not None
    assert (found.time_per_output_token.p50, found.time_per_output_token.p99) == (2.0, 3.0)
    assert found.prefill_tokens_per_second == 20 / 2.0
    assert found.decode_tokens_per_second == pytest.approx((6 / 6 + 6 / 6) / 2)
    assert found.tokens_per_second == 8 / 8.0
    assert (found.rounds, found.peak_memory_bytes) == (2, 700)


def test_one_token_has_no_time_between_tokens() -> None:
    found = summarise("m", "engine", Workload(1, 10, 1), [Turn(((0.5,),))])
    assert found.time_per_output_token is None
    assert found.decode_tokens_per_second is None
    assert found.peak_memory_bytes is None
    assert math.isclose(found.tokens_per_second, 2.0)


def test_tokens_that_come_with_the_first_one_are_no_gaps() -> None:
    together = Turn(((2.0, 2.0, 5.0), (2.0, 2.0, 6.0)))
    assert together.gaps() == [3.0, 4.0]
    assert together.decode_tokens_per_second() == pytest.approx(2 / 4.0)
    assert Turn(((2.0, 2.0),)).gaps() == []
    assert Turn(((2.0, 2.0),)).decode_tokens_per_second() is None


def test_missing_tokens_are_an_error() -> None:
    with pytest.raises(SecateurError, match=r"expected 4 tokens of each of 3 .* x, got \[4, 4\]"):
        check_turn(TURN, Workload(3, 10, 4), "x")


def test_empty_workloads_are_refused() -> None:
    with pytest.raises(SecateurError, match="expected a workload of at least 1 everywhere"):
        Workload(1, 0, 4)
