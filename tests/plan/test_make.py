"""Plans of tiny models from beginning to end. Limits are in bytes, so that no time decides."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import model_from, tiny_model
from told import Told
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from word_tokenizer import word_tokenizer

from secateur import compress
from secateur.calibration.tokens import tokens_from_tensor
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.measure import num_bytes
from secateur.models.swap import compressed_modules
from secateur.plan import build
from secateur.plan.build import Bench, Trial, build_trial, fitted_to, restricted
from secateur.plan.make import Target, make_plan
from secateur.plan.options import PlanOptions
from secateur.plan.result import Plan
from secateur.plan.solve import solve
from secateur.plan.table import Choice, Limit, Removal, Selection, Table, Unit
from secateur.plan.workload import Workload
from secateur.recipe import DropBlocksStage, Recipe, recipe_from_dict

IDS = torch.randint(3, 128, (8, 16), generator=torch.Generator().manual_seed(3))
OPTIONS = PlanOptions(rank_fractions=(0.8,), rounds=1)


def plan_of(model: nn.Module, share: float, **more: Any) -> Plan:
    target = Target(num_bytes=int(share * num_bytes(model)))
    more = {"workload": Workload(1, 8), "options": OPTIONS} | more
    return make_plan(model, IDS, target, **more)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("llama", 3)


@pytest.fixture(scope="module")
def plan(model: nn.Module) -> Plan:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = Told()
    found = plan_of(model, 0.78, progress=told)
    # How many models are worth building shows only as they are built.
    assert set(told.unfinished()) <= {"build what may be best"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found


def test_rows_and_predictions(model: nn.Module, plan: Plan) -> None:
    assert [row.name for row in plan.rows] == ["dense", "plan", "low-rank only", "drop only"]
    dense, chosen, low_rank, drop = plan.rows
    assert dense.predicted is not None
    assert dense.measured is not None
    assert dense.predicted.num_bytes == dense.measured.num_bytes == num_bytes(model)
    assert dense.measured.loss == pytest.approx(dense.predicted.loss, rel=1e-5)
    assert dense.forms == {"dense": 21}
    for row in (chosen, drop):
        assert row.predicted is not None
        assert row.measured is not None
        # Bytes are exact: ranks are multiples of 16, and removals take what they hold.
        assert row.predicted.num_bytes == row.measured.num_bytes
        assert row.measured.num_bytes <= 0.78 * num_bytes(model)
        assert row.measured.milliseconds > 0
        assert row.measured.perplexity is None
    assert low_rank.predicted is None
    assert "expected a limit that can be reached" in low_rank.note
    assert chosen.predicted is not None
    assert drop.predicted is not None
    # It begins where the single method ends.
    assert chosen.measured is not None
    assert drop.measured is not None
    assert chosen.measured.loss <= drop.measured.loss


def test_the_recipe_gives_what_was_planned(plan: Plan) -> None:
    assert plan.recipe is not None
    small = compress(tiny_model("llama", 3), recipe_from_dict(plan.recipe), calibration=IDS)
    assert plan.chosen.measured is not None
    assert num_bytes(small) == plan.chosen.measured.num_bytes
    ranks = [layer.form for layer in plan.layers if layer.form.startswith("rank")]
    assert sorted(f"rank {m.rank}" for m in compressed_modules(small).values()) == sorted(ranks)


def test_layers_and_json(plan: Plan) -> None:
    assert len(plan.layers) == 21
    removed = [layer for layer in plan.layers if layer.form == "removed"]
    assert bool(removed) == bool(plan.removed)
    values = json.loads(plan.to_json())
    assert values["limit"].startswith("at most ")
    assert values["recipe"] == plan.recipe
    assert values["workload"] == "prefill, batch 1, length 8"
    assert values["methods"] == ["dense", "low-rank", "drop"]


def test_without_building(model: nn.Module) -> None:
    plan = plan_of(model, 0.9, build=False)
    assert [row.name for row in plan.rows] == ["dense", "plan"]
    assert all(row.measured is None for row in plan.rows)
    assert plan.recipe is not None


def test_a_limit_that_the_dense_model_keeps_to(model: nn.Module) -> None:
    plan = plan_of(model, 1.1, options=replace(OPTIONS, methods=("low-rank",)))
    assert plan.recipe is None
    assert [row.name for row in plan.rows] == ["dense", "plan"]
    assert plan.chosen.forms == {"dense": 21}


def test_parts_may_be_left_out(model: nn.Module) -> None:
    plan = plan_of(model, 0.9, build=False, options=replace(OPTIONS, parts=False))
    assert not [name for name in plan.removed if not name.startswith("block")]


def test_experts_are_left_alone() -> None:
    plan = plan_of(tiny_model("mixtral", 3), 0.8, build=False)
    assert not [layer for layer in plan.layers if "experts" in layer.name]


def llama(intermediate_size: int) -> PreTrainedModel:
    """Two blocks in bf16."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return model_from(config).bfloat16()


def test_2_4_only_where_rows_are_groups_of_four() -> None:
    options = PlanOptions(("2:4",), rounds=1)
    plan = plan_of(llama(66), 0.85, options=options, build=False)
    forms = {layer.name.rpartition(".")[2]: layer.form for layer in plan.layers}
    assert forms["down_proj"] == "dense"
    assert "2:4" in forms.values()


def test_bytes_of_2_4_are_those_of_what_is_built() -> None:
    """Of 68 columns the last four have half a byte, and are given a whole one."""
    options = PlanOptions(("2:4",), rounds=1, trials=0)
    plan = plan_of(llama(68), 0.75, options=options)
    assert plan.chosen.predicted is not None
    assert plan.chosen.measured is not None
    assert "2:4" in {x.form for x in plan.layers if x.name.endswith("down_proj")}
    assert plan.chosen.predicted.num_bytes == plan.chosen.measured.num_bytes


def test_bad_input(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="the smallest plan's"):
        plan_of(model, 0.01)
    with pytest.raises(SecateurError, match="model's context, got 129"):
        plan_of(model, 0.9, workload=Workload(1, 129))
    with pytest.raises(SecateurError, match="an evaluation text needs the model's tokenizer"):
        plan_of(model, 0.9, evaluation_text=tmp_path / "text.txt")
    (tmp_path / "one.txt").write_text("w1")
    text = {"evaluation_text": tmp_path / "one.txt", "tokenizer": word_tokenizer()}
    with pytest.MonkeyPatch.context() as patch:
        # Before anything is measured.
        patch.setattr("secateur.plan.make.measure_table", None)
        with pytest.raises(SecateurError, match="expected a text of at least 2 tokens"):
            plan_of(model, 0.9, **text)
        with pytest.raises(SecateurError, match="an evaluation text is for what is built"):
            plan_of(model, 0.9, build=False, **text)
    with pytest.raises(SecateurError, match="bfloat16 or float16 to offer 2:4"):
        plan_of(model, 0.9, options=replace(OPTIONS, methods=("2:4",)))
    with pytest.raises(SecateurError, match="at least 2 calibration samples"):
        make_plan(model, IDS[:1], Target(speedup=1.5), workload=Workload(1, 8), options=OPTIONS)
    with pytest.raises(SecateurError, match="made with another model's tokenizer"):
        make_plan(model, IDS + 128, Target(speedup=1.5))
    with pytest.raises(SecateurError, match="windows of 129 tokens do not fit the model's context"):
        make_plan(model, torch.full((2, 129), 3), Target(speedup=1.5))


def test_single_methods() -> None:
    choices = (
        Choice("dense", 3.0, 3, 0.0),
        Choice("2:4", 2.0, 2, 0.0),
        Choice("rank 16", 1.0, 1, 0.0, 16),
    )
    table = Table(
        (Unit("u", 0, (64, 48), choices),), (Removal(0, "block", ("u",), 1.0, 1, 0.0),), 2, 1.0, 1
    )
    for method, forms in (("2:4", ["dense", "2:4"]), ("low-rank", ["dense", "rank 16"])):
        only = restricted(table, method)
        assert [choice.form for choice in only.units[0].choices] == forms
        assert only.removals == ()
    only = restricted(table, "drop")
    assert [choice.form for choice in only.units[0].choices] == ["dense"]
    assert only.removals == table.removals


def test_the_best_single_method_is_the_plan_where_nothing_is_better(model: nn.Module) -> None:
    plan = plan_of(model, 0.78, options=replace(OPTIONS, trials=0))
    _, chosen, _, drop = plan.rows
    assert drop.note.startswith("the plan itself")
    assert (chosen.predicted, chosen.removed) == (drop.predicted, drop.removed)
    assert chosen.measured is not None
    assert drop.measured is not None
    assert chosen.measured.losses == drop.measured.losses


def bench_of(model: nn.Module) -> Bench:
    return Bench(model, tokens_from_tensor(IDS), Workload(1, 8), 1, 0.01)


def removal_table(model: nn.Module) -> Table:
    """Of 100 ms, each block gone is to save 20."""
    names = [f"model.layers.{block}.mlp.up_proj" for block in range(3)]
    units = tuple(
        Unit(name, block, (64, 32), (Choice("dense", 1.0, 1, 0.0),))
        for block, name in enumerate(names)
    )
    removals = tuple(Removal(b, "block", (name,), 19.0, 1, 1.0 + b) for b, name in enumerate(names))
    return Table(units, removals, 3, 97.0, 1)


def test_what_is_too_slow_is_selected_again(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine on which removals save half of what was predicted."""
    bench, table = bench_of(model), removal_table(model)

    def times(_: Bench, models: dict[str, nn.Module]) -> dict[str, float]:
        gone = 3 - len(find_blocks(models["built"]))
        return {"dense": 100.0, "built": 100.0 - 10.0 * gone}

    monkeypatch.setattr(build, "_times", times)
    limit = Limit(milliseconds=80.0)
    built = fitted_to(bench, table, limit, build_trial(bench, solve(table, limit)))
    # 80 ms want one block by prediction, two by measurement.
    assert (len(built.trial.selection.removals), built.attempts) == (2, 2)
    assert built.speedup == pytest.approx(100.0 / 80.0)
    limit = Limit(milliseconds=65.0)
    fastest = fitted_to(bench, table, limit, build_trial(bench, solve(table, limit)))
    assert len(fastest.trial.selection.removals) == 2
    assert fastest.taken(limit) == pytest.approx(80.0 / 65.0)


def test_two_models_at_most_are_in_memory_when_others_are_selected(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removals save a quarter of what was predicted: 2, 4 and at last 8 are tried."""
    names = [f"unit {block}" for block in range(12)]
    units = tuple(
        Unit(name, block, (64, 32), (Choice("dense", 1.0, 1, 0.0),))
        for block, name in enumerate(names)
    )
    removals = tuple(Removal(b, "block", (name,), 19.0, 1, 1.0) for b, name in enumerate(names))
    table = Table(units, removals, 12, 88.0, 1)
    recipe = Recipe(stages=(DropBlocksStage(blocks=(0,)),))
    made: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def built_of(_: Bench, selection: Selection) -> Trial:
        network = nn.Linear(len(selection.removals), 1)
        made.append(weakref.ref(network))
        alive.append(sum(reference() is not None for reference in made))
        return Trial(selection, recipe, network, 1.0, (1.0,))

    def times(_: Bench, models: dict[str, Any]) -> dict[str, float]:
        return {"dense": 100.0, "built": 100.0 - 5.0 * models["built"].in_features}

    monkeypatch.setattr(build, "_times", times)
    monkeypatch.setattr(build, "build_trial", built_of)
    bench, limit = bench_of(model), Limit(milliseconds=60.0)
    built = fitted_to(bench, table, limit, built_of(bench, solve(table, limit)))
    assert (len(built.trial.selection.removals), built.attempts) == (8, 3)
    assert alive == [1, 2, 2]


def test_what_is_faster_than_asked_gets_its_ranks_back(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine on which factors save twice what was predicted: one matrix is enough."""
    names = [f"model.layers.{block}.mlp.up_proj" for block in range(2)]
    choices = (Choice("dense", 20.0, 1, 0.0), Choice("rank 16", 10.0, 1, 0.1, 16))
    table = Table(tuple(Unit(n, b, (64, 32), choices) for b, n in enumerate(names)), (), 3, 60.0, 1)

    def times(_: Bench, models: dict[str, nn.Module]) -> dict[str, float]:
        return {"dense": 100.0, "built": 100.0 - 20.0 * len(compressed_modules(models["built"]))}

    monkeypatch.setattr(build, "_times", times)
    bench, limit = bench_of(model), Limit(milliseconds=80.0)
    built = fitted_to(bench, table, limit, build_trial(bench, solve(table, limit)))
    assert built.taken(limit) == pytest.approx(1.0)
    assert len(compressed_modules(built.trial.model)) == 1
    # Where one alone is too slow all the same, both are the best that keeps to the limit.
    monkeypatch.setattr(
        build,
        "_times",
        lambda _, models: {
            "dense": 100.0,
            "built": [100.0, 85.0, 60.0][len(compressed_modules(models["built"]))],
        },
    )
    built = fitted_to(bench, table, limit, build_trial(bench, solve(table, limit)))
    assert (built.taken(limit), built.attempts) == (pytest.approx(60.0 / 80.0), 1)
