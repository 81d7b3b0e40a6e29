from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.recipe import DropBlocksStage, recipe_from_text


def test_old_recipes_mean_what_they_meant() -> None:
    recipe = recipe_from_text("stages: [{stage: drop_blocks, count: 2}]")
    assert recipe.stages == (
        DropBlocksStage(
            criterion="block_influence",
            count=2,
            granularity="block",
            remeasure=False,
            protect_first=0,
            protect_last=0,
            trace_loss=False,
        ),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1, "protect_first": -1}, "at least 0, got -1 and 0"),
        ({"count": 1, "protect_last": -2}, "at least 0, got 0 and -2"),
        ({"blocks": (1,), "remeasure": True}, "`blocks` names them"),
        ({"blocks": (1,), "protect_first": 1}, "`blocks` names them"),
        ({"blocks": (1,), "protect_last": 1}, "`blocks` names them"),
        (
            {"count": 1, "criterion": "angular_distance", "remeasure": True},
            "angular_distance chooses all blocks at once",
        ),
        (
            {"count": 1, "criterion": "angular_distance", "granularity": "mlp"},
            "measures whole blocks in a row; for `granularity` mlp",
        ),
    ],
)
def test_refuses_options_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        DropBlocksStage(**values)


def test_what_needs_calibration() -> None:
    assert DropBlocksStage(count=1).needs_calibration
    assert not DropBlocksStage(blocks=(1,)).needs_calibration
    assert DropBlocksStage(blocks=(1,), trace_loss=True).needs_calibration
