"""Which planned models are handed over, and what they are made of."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench.planner import Point, handed_over, on_all_samples
from families import tiny_model
from torch import nn

from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.blocks import find_blocks
from secateur.models.swap import compressed_modules
from secateur.modules import Sparse24Linear
from secateur.plan.build import Bench, Built
from secateur.plan.recipe import plan_recipe
from secateur.plan.result import Measurement
from secateur.plan.table import Choice, Table, Unit, select
from secateur.plan.workload import Workload

UP = "model.layers.0.mlp.up_proj"


def test_a_target_that_no_plan_reaches_has_none_to_hand_over() -> None:
    measured: Any = SimpleNamespace(table=SimpleNamespace(dense_milliseconds=10.0))
    losses = {"plan 1.2": 4.0, "drop 1.2": 4.1}
    points = {
        name: Point(nn.Module(), {"loss_built": loss, "losses_by_sample": (loss, loss)})
        for name, loss in losses.items()
    }
    found = {name: Measurement(8.0, 10.0, 1, loss) for name, loss in losses.items()}
    assert handed_over(measured, points, found, [1.2, 9.0]) == {"1.2": "plan 1.2"}


@pytest.mark.parametrize("form", ["2:4", "rank 16"])
def test_models_that_are_timed_have_their_layers_compressed(form: str) -> None:
    ids = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(1))
    model = tiny_model("llama", 2).bfloat16().eval()
    bench = Bench(model, tokens_from_tensor(ids), Workload(1, 8), 1, 0.01)
    choices = (Choice("dense", 2.0, 2, 0.0), Choice(form, 1.0, 1, 0.1, 16 if "r" in form else None))
    table = Table((Unit(UP, 0, (64, 32), choices),), (), 2, 1.0, 1)
    selection = select(table, {UP: form})
    recipe = plan_recipe(selection, find_blocks(model), bench.damping)
    made = on_all_samples(bench, Built(selection, recipe, model, table, 1.0, 1))
    found = compressed_modules(made)
    assert list(found) == [UP]
    assert isinstance(found[UP], Sparse24Linear) == (form == "2:4")
