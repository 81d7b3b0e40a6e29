"""Selections as recipes, and what compressing by them does."""

import copy
from dataclasses import replace

import pytest
import torch
from families import tiny_model

from secateur import compress
from secateur.models.blocks import find_blocks
from secateur.models.inventory import take_inventory
from secateur.models.sublayers import removed_sublayers
from secateur.models.swap import compressed_modules
from secateur.modules import LowRankLinear
from secateur.plan.recipe import plan_recipe
from secateur.plan.table import Choice, Removal, Table, Unit, select
from secateur.recipe import (
    DropBlocksStage,
    FactorStage,
    PruneStage,
    RankOverride,
    Recipe,
    recipe_from_text,
)

TOKENS = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(1))
FORMS = (
    Choice("dense", 3.0, 30, 0.0),
    Choice("2:4", 2.0, 20, 0.1),
    Choice("rank 8", 1.5, 15, 0.2, 8),
    Choice("rank 16", 1.0, 10, 0.3, 16),
)
KIND = "self_attn.q_proj"
# Of two blocks that are left: they stay dense.
FED = tuple(
    f"model.layers.{block}.{name}"
    for block in (0, 1)
    for name in ("self_attn.o_proj", "mlp.down_proj")
)


def table_of(model: torch.nn.Module) -> Table:
    inventory = take_inventory(model)
    units = tuple(
        Unit(site.name, index, site.shape, FORMS)
        for index, sites in enumerate(inventory.sites)
        for site in sites
    )
    removals = tuple(
        Removal(
            index,
            part,  # type: ignore[arg-type]
            tuple(u.name for u in units if u.block == index and inside in u.name),
            0.0,
            0,
            0.0,
        )
        for index in range(len(inventory.blocks))
        for part, inside in (("block", ""), ("attention", "self_attn"), ("mlp", ".mlp."))
    )
    return Table(units, removals, len(inventory.blocks), 1.0, 1)


def removal(table: Table, block: int, part: str) -> Removal:
    [found] = [r for r in table.removals if (r.block, r.part) == (block, part)]
    return found


def test_the_compressed_model_is_as_planned() -> None:
    model = tiny_model("llama", 5)
    table = table_of(model)
    forms = {
        f"model.layers.0.{KIND}": "rank 16",
        "model.layers.2.mlp.up_proj": "rank 8",
        f"model.layers.4.{KIND}": "rank 8",
        "model.layers.4.mlp.down_proj": "2:4",
    }
    gone = [removal(table, 1, "block"), removal(table, 2, "attention"), removal(table, 3, "mlp")]
    selection = select(table, forms, gone)
    recipe = plan_recipe(selection, find_blocks(model), 0.01, "loss")
    assert recipe is not None
    assert recipe_from_text(recipe.to_yaml()) == recipe
    before = copy.deepcopy(model.model.layers[0].mlp.up_proj.weight)
    small = compress(model, recipe, calibration=TOKENS)
    # Block 1 is gone: blocks 2, 3 and 4 are now 1, 2 and 3.
    ranks = {name: m.rank for name, m in compressed_modules(small).items()}
    assert ranks == {
        f"model.layers.0.{KIND}": 16,
        "model.layers.1.mlp.up_proj": 16,  # rank 8, padded to what kernels work in
        f"model.layers.3.{KIND}": 16,
    }
    for name, module in compressed_modules(small).items():
        assert isinstance(module, LowRankLinear)
        kept = torch.linalg.matrix_rank(module.to_linear().weight.double(), rtol=1e-5)
        assert kept == (16 if name.startswith("model.layers.0.") else 8)
    assert set(removed_sublayers(small)) == {"model.layers.1.self_attn", "model.layers.2.mlp"}
    pruned = small.model.layers[3].mlp.down_proj.weight
    assert (pruned.reshape(len(pruned), -1, 4) != 0).sum(2).max() == 2
    assert torch.equal(small.model.layers[0].mlp.up_proj.weight, before)
    assert len(find_blocks(small)) == 4


def test_stages_and_their_order() -> None:
    model = tiny_model("llama", 3)
    table = table_of(model)
    forms = {
        f"model.layers.1.{KIND}": "rank 8",
        "model.layers.1.mlp.up_proj": "rank 16",
        "model.layers.2.mlp.up_proj": "2:4",
    }
    selection = select(table, forms, [removal(table, 0, "block")])
    assert plan_recipe(selection, find_blocks(model), 0.5, "directions") == Recipe(
        stages=(
            DropBlocksStage(blocks=(0,)),
            PruneStage(
                method="sparsegpt",
                pattern="2:4",
                targets=("model.layers.1.mlp.up_proj",),
                damping=0.5,
            ),
            FactorStage(
                rank=16,
                targets=("model.layers.0.mlp.up_proj", f"model.layers.0.{KIND}", *FED),
                overrides=(
                    RankOverride(targets=(f"model.layers.0.{KIND}",), rank=8),
                    RankOverride(targets=FED, rank=None),
                ),
                damping=0.5,
                importance="directions",
                importance_samples=64,
                in_turn=True,
            ),
        )
    )


def test_block_10_is_not_block_1() -> None:
    model = tiny_model("llama", 11)
    table = table_of(model)
    forms = {f"model.layers.10.{KIND}": "rank 8", f"model.layers.2.{KIND}": "rank 8"}
    selection = select(table, forms, [removal(table, 1, "block")])
    recipe = plan_recipe(selection, find_blocks(model), 0.01, "loss")
    assert recipe is not None
    assert recipe.stages[-1].targets[:2] == (  # type: ignore[union-attr]
        f"model.layers.1.{KIND}",
        f"model.layers.9.{KIND}",
    )


def test_nothing_to_do_is_no_recipe() -> None:
    model = tiny_model("llama", 2)
    selection = select(table_of(model), {})
    assert plan_recipe(selection, find_blocks(model), 0.01, "loss") is None
    with_zero_gain = replace(selection, loss=0.0)
    assert with_zero_gain.is_dense


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_other_families_compress_by_their_recipe(family: str) -> None:
    model = tiny_model(family, 3)
    inventory = take_inventory(model)
    table = table_of(model)
    last = inventory.sites[2][0].name
    block = removal(table, 1, "block")
    recipe = plan_recipe(select(table, {last: "rank 8"}, [block]), inventory.blocks, 0.01, "loss")
    assert recipe is not None
    small = compress(model, recipe, calibration=TOKENS)
    assert [name.split(".")[-3] for name in compressed_modules(small)] == ["1"]
