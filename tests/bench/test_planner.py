"""Which models are planned, and what they are made of."""

from dataclasses import replace

import pytest
import torch
from bench.planner import UNPLANNED, on_all_samples, planned_points
from families import tiny_model

from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.swap import compressed_modules
from secateur.modules import Sparse24Linear
from secateur.plan.build import Bench, build_trial
from secateur.plan.measure import measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.table import Choice, Table, Unit, select
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress
from secateur.recipe import FactorStage, recipe_from_dict

UP = "model.layers.0.mlp.up_proj"


def small_bench(dtype: torch.dtype) -> Bench:
    ids = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(1))
    model = tiny_model("llama", 2).to(dtype).eval()
    return Bench(model, tokens_from_tensor(ids), Workload(1, 8), 1, 0.01)


def test_every_way_to_a_target_is_made_and_a_target_out_of_reach_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = small_bench(torch.float32)
    options = PlanOptions(rounds=1, rank_fractions=(0.8,), parts=False)
    measured = measure_table(bench.model, bench.tokens, bench.workload, options, SilentProgress())
    # Times that were made up: a block saves 30 ms, factors save 1.
    units = tuple(
        replace(
            unit,
            choices=tuple(replace(c, milliseconds=2.0 - (c.form != "dense")) for c in unit.choices),
        )
        for unit in measured.table.units
    )
    removals = tuple(replace(r, milliseconds=16.0) for r in measured.table.removals)
    table = replace(measured.table, units=units, removals=removals, rest_milliseconds=60.0)
    points = planned_points(replace(measured, table=table), bench, [1.3, 99.0], 1, 0.0)
    assert "plan 99: expected a limit that can be reached" in capsys.readouterr().out
    assert list(points) == ["plan 1.3", "drop 1.3"]
    assert points["plan 1.3"].facts["removed"] == points["drop 1.3"].facts["removed"] != []
    assert points["plan 1.3"].model is points["drop 1.3"].model


@pytest.mark.parametrize("form", ["2:4", "rank 16"])
def test_models_that_are_timed_have_their_layers_compressed(form: str) -> None:
    bench = small_bench(torch.bfloat16)
    choices = (Choice("dense", 2.0, 2, 0.0), Choice(form, 1.0, 1, 0.1, 16 if "r" in form else None))
    table = Table((Unit(UP, 0, (64, 32), choices),), (), 2, 1.0, 1)
    selection = select(table, {UP: form})
    made = on_all_samples(bench, build_trial(bench, selection))
    found = compressed_modules(made)
    assert list(found) == [UP]
    assert isinstance(found[UP], Sparse24Linear) == (form == "2:4")


def test_methods_without_a_planner_are_what_their_names_say() -> None:
    for method, stages in UNPLANNED.items():
        for name, values in stages.items():
            [stage] = recipe_from_dict({"stages": [values]}).stages
            if isinstance(stage, FactorStage):
                wanted = "directions" if "directions" in method else "loss"
                assert (stage.method, stage.importance) == ("svd-whitened", wanted)
                assert f"svd-whitened --budget {stage.budget}" in name
                assert name.endswith(f"--importance {wanted}")
