"""The table's arithmetic, from times and losses that were made up."""

import copy
import math
import weakref
from typing import Any

import pytest
import torch
from families import tiny_model
from torch import nn

from secateur.calibration.tokens import tokens_from_tensor
from secateur.checkpoint.fingerprint import probe_tokens
from secateur.depth.drop import drop_blocks
from secateur.models.blocks import find_blocks
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.measure import num_bytes
from secateur.plan.losses import Asked, Losses
from secateur.plan.measure import Measured, build_table, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.table import Part, Table, select
from secateur.plan.times import Times, measure_times
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress
from secateur.stages.drop_plan import block_sublayers
from secateur.stages.factor_importance import Importance, measure_importance

Q = "model.layers.1.self_attn.q_proj"
DENSE_MS = 100.0
PARTS: dict[Part, float] = {"block": 20.0, "attention": 8.0, "mlp": 11.0}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("llama", 3)


@pytest.fixture(scope="module")
def table(model: nn.Module) -> Table:
    inventory = take_inventory(model)
    sites = inventory.all_sites
    ranks = {site.name: (16, 24) if site.name == Q else () for site in sites}
    asked = Asked(ranks, True, True, block_sublayers(model, inventory.blocks, probe_tokens(model)))
    times = Times(
        DENSE_MS,
        {s.name: {"dense": 2.0, "rank 16": 1.0, "rank 24": 1.5, "2:4": 3.0} for s in sites},
        {(block, part): time for block in range(3) for part, time in PARTS.items()},
        1.0,
    )
    losses = Losses(4.0)
    for site in sites:
        losses.worth[site.name] = 2.0 if site.name == Q else 1.0
        losses.left_out[site.name, "2:4"] = 0.25
    losses.left_out[Q, "rank 16"], losses.left_out[Q, "rank 24"] = 0.5, 0.375
    for block in range(3):
        losses.removals[block, "block"] = 5.0
        losses.removals[block, "attention"] = 4.5
        losses.removals[block, "mlp"] = 3.5
    return build_table(model, inventory, sites, asked, losses, times)


def test_dense_is_what_was_measured(model: nn.Module, table: Table) -> None:
    assert table.dense_milliseconds == DENSE_MS
    assert table.rest_milliseconds == DENSE_MS - 2.0 * 21
    counted = {id(p): p.numel() * 4 for p in model.parameters()}
    assert table.dense_bytes == sum(counted.values())


def test_removals_take_what_was_measured(model: nn.Module, table: Table) -> None:
    for removal in table.removals:
        found = select(table, {}, [removal])
        assert found.milliseconds == pytest.approx(DENSE_MS - PARTS[removal.part])
        block = find_blocks(model).modules[removal.block]
        inside = {"block": "", "attention": "self_attn", "mlp": "mlp"}[removal.part]
        gone = sum(p.numel() * 4 for p in block.get_submodule(inside).parameters())
        assert table.dense_bytes - found.num_bytes == gone
        assert found.loss == {"block": 1.0, "attention": 0.5, "mlp": 0.0}[removal.part]


def times_of_blocks(inventory: Inventory) -> Times:
    """Of dense layers and of whole blocks alone."""
    return Times(
        DENSE_MS,
        {site.name: {"dense": 2.0} for site in inventory.all_sites},
        {(block, "block"): 20.0 for block in range(3)},
        1.0,
    )


def test_what_other_blocks_hold_too_stays_in_memory() -> None:
    model = tiny_model("llama", 3)
    model.model.layers[2].mlp = model.model.layers[0].mlp
    inventory = take_inventory(model)
    asked = Asked({site.name: () for site in inventory.all_sites}, False, True)
    times = times_of_blocks(inventory)
    losses = Losses(4.0, removals={(block, "block"): 5.0 for block in range(3)})
    table = build_table(model, inventory, inventory.all_sites, asked, losses, times)
    for removal in table.removals:
        left = copy.deepcopy(model)
        drop_blocks(left, find_blocks(left), [removal.block])
        assert select(table, {}, [removal]).num_bytes == num_bytes(left)


def test_what_the_model_overflows_without_does_not_go(model: nn.Module) -> None:
    inventory = take_inventory(model)
    asked = Asked({site.name: () for site in inventory.all_sites}, False, True)
    times = times_of_blocks(inventory)
    found: dict[tuple[int, Part], float]
    found = {(0, "block"): math.nan, (1, "block"): 5.0, (2, "block"): math.inf}
    losses = Losses(4.0, removals=found)
    table = build_table(model, inventory, inventory.all_sites, asked, losses, times)
    assert [(removal.block, removal.loss) for removal in table.removals] == [(1, 1.0)]


def test_forms(table: Table) -> None:
    [unit] = [unit for unit in table.units if unit.name == Q]
    assert unit.block == 1
    rows, columns = unit.shape
    found = {choice.form: choice for choice in unit.choices}
    assert list(found) == ["dense", "2:4", "rank 24", "rank 16"]
    assert found["rank 16"].num_bytes == 16 * (rows + columns) * 4
    assert found["2:4"].num_bytes == (0.5 * 4 + 0.125) * rows * columns
    # Half of what the output is worth, times the share of it that is lost.
    assert [found[form].loss for form in found] == [0.0, 0.25, 0.375, 0.5]
    assert (found["rank 16"].milliseconds, found["rank 16"].rank) == (1.0, 16)
    assert found["2:4"].rank is None


def test_other_layers_have_no_ranks(table: Table) -> None:
    [unit] = [unit for unit in table.units if unit.name.endswith("2.mlp.up_proj")]
    assert [choice.form for choice in unit.choices] == ["dense", "2:4"]
    assert unit.choices[1].loss == pytest.approx(0.5 * 0.25)


def test_numbers_are_plain(table: Table) -> None:
    assert not any(
        isinstance(choice.loss, torch.Tensor) for u in table.units for choice in u.choices
    )


def measured_where(model: nn.Module, directions_fit: bool, all_fits: bool) -> Measured:
    """By a table of ranks, with memory as the test wants it."""

    def tight(*args: Any) -> dict[str, Importance] | None:
        if not (directions_fit if args[3] else all_fits):
            raise torch.OutOfMemoryError("no memory, as the test wants it")
        return measure_importance(*args)

    ids = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(3))
    options = PlanOptions(("low-rank",), rank_fractions=(0.8,), rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.plan.measure.measure_importance", tight)
        return measure_table(
            model, tokens_from_tensor(ids), Workload(1, 8), options, SilentProgress()
        )


def test_importance_is_as_fine_as_memory_allows(model: nn.Module) -> None:
    found = measured_where(model, directions_fit=True, all_fits=True)
    assert (found.importance, found.notes) == ("directions", ())
    found = measured_where(model, directions_fit=False, all_fits=True)
    assert found.importance == "loss"
    assert "whole outputs are weighed, not their directions" in " ".join(found.notes)
    found = measured_where(model, directions_fit=False, all_fits=False)
    assert found.importance == "output"
    assert "a backward pass does not fit in memory" in " ".join(found.notes)
    losses = [choice.loss for unit in found.table.units for choice in unit.choices[1:]]
    assert all(0 < loss < 0.5 / len(found.table.units) for loss in losses)


def test_times_are_measured_without_the_gradients(model: nn.Module) -> None:
    held: list[weakref.ref[Importance]] = []

    def keep(*args: Any) -> dict[str, Importance] | None:
        # Not in TF32, as the factor stage's.
        assert torch.get_float32_matmul_precision() == "highest"
        found = measure_importance(*args)
        held.extend(map(weakref.ref, (found or {}).values()))
        return found

    def timed(*args: Any) -> Times:
        assert held
        assert all(one() is None for one in held)
        return measure_times(*args)

    ids = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(3))
    options = PlanOptions(("low-rank",), rank_fractions=(0.8,), rounds=1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("secateur.plan.measure.measure_importance", keep)
            patch.setattr("secateur.plan.measure.measure_times", timed)
            measure_table(model, tokens_from_tensor(ids), Workload(1, 8), options, SilentProgress())
    finally:
        torch.set_float32_matmul_precision(before)
