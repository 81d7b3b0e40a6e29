"""Options of `secateur compress` as a recipe."""

import pytest

from secateur.cli.compress_options import DropOptions, StageOptions
from secateur.cli.compress_recipe import recipe_of
from secateur.recipe import FactorStage


@pytest.mark.parametrize("in_turn", [None, True, False])
def test_what_is_fed_is_fitted_as_asked_for(in_turn: bool | None) -> None:
    options = StageOptions(method="svd-whitened", rank=4, in_turn=in_turn)
    [stage] = recipe_of(None, DropOptions(), options).stages
    assert stage == FactorStage(rank=4, in_turn=in_turn)
