"""Losses beside a plan's other choices, against whole models changed by hand."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from families import tiny_model

from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.inventory import take_inventory
from secateur.plan.around import ranks_near, table_around
from secateur.plan.build import Bench, Built, build_selection, held_out_loss
from secateur.plan.losses import Losses
from secateur.plan.measure import Measured, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.refine import best_within, losses_beside
from secateur.plan.table import Choice, Limit, Removal, Selection, Table, Unit, select
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress

IDS = torch.randint(3, 128, (8, 16), generator=torch.Generator().manual_seed(3))
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(tiny_model("llama", 4).eval(), tokens_from_tensor(IDS), Workload(1, 8), 1, 0.01)


@pytest.fixture(scope="module")
def measured(bench: Bench) -> Measured:
    options = PlanOptions(rounds=1, rank_fractions=(0.8,))
    return measure_table(bench.model, bench.tokens, bench.workload, options, SilentProgress())


@pytest.fixture(scope="module")
def selection(measured: Measured) -> Selection:
    """Two matrices as factors, block 1 gone and the attention of block 3."""
    table = measured.table
    gone = [r for r in table.removals if r.name in ("block 1", "attention of 3")]
    return select(table, {UP: "rank 16", DOWN: "rank 16"}, gone)


@pytest.fixture(scope="module")
def built(bench: Bench, measured: Measured, selection: Selection) -> Built:
    model, recipe = build_selection(bench, selection)
    return Built(selection, recipe, model, measured.table, 1.0, 1)


@pytest.fixture(scope="module")
def losses(bench: Bench, measured: Measured, built: Built) -> Losses:
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    found = losses_beside(bench, measured.scene, built, SilentProgress())
    for name, value in bench.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for module in bench.model.modules():
        assert "forward" not in vars(module)
    return found


def test_the_dense_model_does_what_the_built_one_does(
    bench: Bench, built: Built, losses: Losses
) -> None:
    assert losses.start == pytest.approx(held_out_loss(bench, built.model), rel=1e-5)


def test_a_matrix_dense_again_and_another_one_factored(
    bench: Bench, built: Built, losses: Losses
) -> None:
    other = copy.deepcopy(built.model)
    # Block 1 is gone: block 2 of the dense model is block 1 of this one.
    other.model.layers[1].mlp.down_proj = copy.deepcopy(bench.model.model.layers[2].mlp.down_proj)
    expected = held_out_loss(bench, other)
    assert losses.forms[DOWN, "dense"] == pytest.approx(expected, rel=1e-5)
    assert losses.forms[DOWN, "dense"] != pytest.approx(losses.start, rel=1e-6)
    gate = "model.layers.2.mlp.gate_proj"
    assert (gate, "dense") not in losses.forms
    assert losses.forms[gate, "rank 16"] != pytest.approx(losses.start, rel=1e-6)
    assert not [name for name, _ in losses.forms if ".layers.1." in name]
    assert not [name for name, _ in losses.forms if "layers.3.self_attn" in name]


def test_removals_beside_others(bench: Bench, built: Built, losses: Losses) -> None:
    inventory = take_inventory(bench.model)
    assert losses.removals[1, "block"] == losses.removals[3, "attention"] == losses.start
    # Another removal takes the place of the one that was: attention back, MLP gone.
    other = copy.deepcopy(built.model)
    other.model.layers[2].self_attn = copy.deepcopy(bench.model.model.layers[3].self_attn)
    other.model.layers[2].self_attn.layer_idx = 2
    assert losses.restored[3] == pytest.approx(held_out_loss(bench, other), rel=1e-5)
    other.model.layers[2].mlp.down_proj.weight.data.zero_()
    assert losses.removals[3, "mlp"] == pytest.approx(held_out_loss(bench, other), rel=1e-5)
    assert set(losses.restored) == {1, 3}
    assert len(losses.removals) == 3 * len(inventory.blocks)


def test_the_moved_table_says_what_the_plan_loses(
    measured: Measured, selection: Selection, losses: Losses
) -> None:
    table = table_around(measured.table, selection, losses, measured.dense_loss)
    forms = {name: choice.form for name, choice in selection.forms.items()}
    gone = [r for r in table.removals if r.name in ("block 1", "attention of 3")]
    found = select(table, forms, gone)
    assert measured.dense_loss + found.loss == pytest.approx(losses.start, rel=1e-9)
    without = select(table, forms | {UP: "dense"}, gone)
    if losses.start > losses.forms[UP, "dense"]:
        assert measured.dense_loss + without.loss == pytest.approx(losses.forms[UP, "dense"])
    assert (found.milliseconds, found.num_bytes) == (selection.milliseconds, selection.num_bytes)


def pair_table(losses: dict[str, float]) -> Table:
    """Two matrices, each dense or of three ranks, and a removal of each one's block."""
    forms = [("dense", 8.0, None), ("rank 48", 6.0, 48), ("rank 32", 4.0, 32), ("rank 16", 2.0, 16)]
    units = tuple(
        Unit(
            name,
            block,
            (256, 256),
            tuple(Choice(f, t, int(t), losses.get(f"{name} {f}", 0.0), r) for f, t, r in forms),
        )
        for block, name in enumerate("ab")
    )
    removals = tuple(
        Removal(block, "block", (name,), 1.0, 1, losses[f"without {name}"])
        for block, name in enumerate("ab")
    )
    return Table(units, removals, 2, 4.0, 4)


ALONE = {
    "a rank 48": 0.1,
    "a rank 32": 0.2,
    "a rank 16": 0.4,
    "b rank 48": 0.1,
    "b rank 32": 0.3,
    "b rank 16": 0.5,
    "without a": 0.6,
    "without b": 0.9,
}


def test_what_was_not_measured_grows_as_the_rest_does() -> None:
    table = pair_table(ALONE)
    selection = select(table, {"a": "rank 32", "b": "rank 32"})
    assert ranks_near(table, selection) == {"a": (16, 48), "b": (16, 48)}
    losses = Losses(
        3.0,
        {
            ("a", "dense"): 2.6,
            ("a", "rank 48"): 2.7,
            ("b", "dense"): 2.4,
            ("b", "rank 48"): 2.35,
            ("b", "rank 16"): 3.5,
        },
        {(0, "block"): 3.5, (1, "block"): 3.2},
    )
    moved = table_around(table, selection, losses, 2.0)
    # Beside each other both lose 0.4 + 0.6, alone 0.2 + 0.3: twice as much.
    first, second = ([choice.loss for choice in unit.choices] for unit in moved.units)
    assert first == pytest.approx([0.0, 0.1, 0.4, 0.8])
    assert second == pytest.approx([0.0, 0.0, 0.6, 1.1])
    # Without a: 0.5 more than with its rank 32, which loses 0.4 more than dense.
    assert [removal.loss for removal in moved.removals] == pytest.approx([0.9, 0.8])
    assert moved.rest_loss == pytest.approx(3.0 - 2.0 - 0.4 - 0.6)
    assert select(moved, {"a": "rank 32", "b": "rank 32"}).loss == pytest.approx(1.0)


def test_what_is_removed_can_come_back() -> None:
    table = pair_table(ALONE)
    selection = select(table, {"b": "rank 32"}, table.removals[:1])
    losses = Losses(
        3.0, {("b", "dense"): 2.5, ("b", "rank 48"): 2.7, ("b", "rank 16"): 3.5}, {}, {0: 2.2}
    )
    losses.removals.update({(0, "block"): 3.0, (1, "block"): 3.4})
    moved = table_around(table, selection, losses, 2.0)
    assert [removal.loss for removal in moved.removals] == pytest.approx([0.8, 0.9])
    growth = 0.5 / 0.3
    assert moved.units[0].choices[2].loss == pytest.approx(growth * 0.2)
    assert select(moved, {"b": "rank 32"}).loss == pytest.approx(2.2 - 2.0)


def test_a_better_plan_is_found_near_the_first(bench: Bench, measured: Measured) -> None:
    """With losses that mislead, the first plan is bad; seen from there, a better one is found."""
    table = measured.table
    worst_first = replace(
        table,
        units=tuple(
            replace(u, choices=tuple(replace(c, loss=1.0 - c.loss) for c in u.choices))
            for u in table.units
        ),
        removals=(),
    )
    limit = Limit(num_bytes=int(0.9 * table.dense_bytes))
    plain = best_within(bench, measured, worst_first, limit, 0, SilentProgress())
    better = best_within(bench, measured, worst_first, limit, 3, SilentProgress())
    assert better.built.keeps_to(limit)
    assert better.losses[0] == plain.losses[0]
    assert held_out_loss(bench, better.built.model) < held_out_loss(bench, plain.built.model)


def test_more_refinements_never_lose_more(bench: Bench, measured: Measured) -> None:
    limit = Limit(num_bytes=int(0.85 * measured.table.dense_bytes))
    losses: list[float] = []
    for refinements in range(4):
        best = best_within(bench, measured, measured.table, limit, refinements, SilentProgress())
        losses.append(held_out_loss(bench, best.built.model))
        assert losses[-1] == min(best.losses)
        assert len(best.losses) <= 1 + refinements
    assert all(later <= earlier for earlier, later in pairwise(losses))


def test_what_is_slower_than_asked_stays_the_plan_where_nothing_is_faster(
    bench: Bench, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the times of what was built the limit is out of reach: there is nothing to refine."""

    def no_faster(_: Bench, models: dict[str, object]) -> dict[str, float]:
        return dict.fromkeys(("dense", *models), 1.0)

    monkeypatch.setattr("secateur.plan.build._times", no_faster)
    units = tuple(
        replace(
            unit,
            choices=tuple(
                replace(choice, milliseconds=2.0 if choice.form == "dense" else 1.0)
                for choice in unit.choices
            ),
        )
        for unit in measured.table.units
    )
    table = replace(measured.table, units=units, removals=(), rest_milliseconds=1.0)
    # Nearly all that can be saved, if each millisecond were.
    most_saved = sum(len(unit.choices) > 1 for unit in units)
    limit = Limit(milliseconds=table.dense_milliseconds - 0.9 * most_saved)
    best = best_within(bench, measured, table, limit, 2, SilentProgress())
    assert not best.built.keeps_to(limit)
    assert best.losses == (held_out_loss(bench, best.built.model),)
