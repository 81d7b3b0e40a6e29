from types import SimpleNamespace

import pytest

from secateur.plan.times import _scale


@pytest.mark.parametrize(
    ("probe", "scale"),
    [(8.0, 1.0), (7.5, 1.25), (9.0, 0.5), (9.4, 0.5), (9.6, 1.0), (11.0, 1.0), (5.0, 2.0)],
)
def test_what_factors_save_in_the_model_over_what_they_save_alone(
    probe: float, scale: float
) -> None:
    sites = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    setup = SimpleNamespace(sites=sites, ranks={"a": (8, 16, 32), "b": ()})
    alone = {
        "a": {"dense": 3.0, "rank 8": 0.5, "rank 16": 1.0, "rank 32": 2.0},
        "b": {"dense": 9.0},
    }
    found = _scale(setup, alone, {"dense": 10.0, "probe": probe})  # type: ignore[arg-type]
    assert found == pytest.approx(scale)


def test_factors_that_save_nothing_alone_are_not_scaled() -> None:
    setup = SimpleNamespace(sites=[SimpleNamespace(name="a")], ranks={"a": (8,)})
    alone = {"a": {"dense": 3.0, "rank 8": 3.0}}
    assert _scale(setup, alone, {"dense": 10.0, "probe": 5.0}) == 1.0  # type: ignore[arg-type]
