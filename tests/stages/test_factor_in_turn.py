"""Matrices that lead out of attention and MLP, fitted to what those that feed them now give."""

import copy
from typing import Any

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from secateur import compress_with_report
from secateur.models.inventory import take_inventory
from secateur.modules import LowRankLinear
from secateur.progress import SilentProgress
from secateur.report.record import FactoredLayer, FactorRecord

TOKENS = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(1))
MLP = "model.layers.0.mlp."
FEEDS = ("gate_proj", "up_proj")


def run(model: nn.Module, stage: dict[str, Any]) -> dict[str, FactoredLayer]:
    recipe = {"stages": [{"stage": "factor", "importance": "output", "in_turn": True, **stage}]}
    _, report = compress_with_report(model, recipe, calibration=TOKENS, progress=SilentProgress())
    [record] = report.stages
    assert isinstance(record, FactorRecord)
    return {layer.name: layer for layer in record.layers}


def of_mlp(rank: int | None) -> dict[str, Any]:
    """Factors of rank 8 of gate and up, and something else for what they feed."""
    names = [f"{MLP}{name}" for name in FEEDS]
    override = {"targets": [f"{MLP}down_proj"], "rank": rank}
    return {"rank": 8, "targets": [*names, f"{MLP}down_proj"], "overrides": [override]}


def input_of_down(model: nn.Module) -> Tensor:
    """[tokens, K]."""
    seen: list[Tensor] = []
    down = model.get_submodule(f"{MLP}down_proj")
    hook = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("rank", [None, 32])
def test_what_is_fed_gives_the_dense_outputs_as_nearly_as_it_can(rank: int | None) -> None:
    dense = tiny_model("llama", num_blocks=1).double()
    model = copy.deepcopy(dense)
    found = run(model, {**of_mlp(rank), "damping": 0.0})
    assert [layer.rank for layer in found.values()] == [8, 8, rank]
    before, after = input_of_down(dense), input_of_down(model)
    assert not torch.allclose(before, after, rtol=0.1)
    wanted = before @ dense.get_submodule(f"{MLP}down_proj").weight.T
    solution = torch.linalg.lstsq(after, wanted).solution.T
    layer = model.get_submodule(f"{MLP}down_proj")
    # Of full rank the factors are the matrix.
    weight = layer.to_linear().weight if isinstance(layer, LowRankLinear) else layer.weight
    assert isinstance(layer, LowRankLinear) == (rank is not None)
    # The moments are summed in fp32.
    torch.testing.assert_close(weight.detach(), solution, rtol=1e-3, atol=1e-3)


def test_what_feeds_is_factored_as_ever() -> None:
    models = []
    for in_turn in (True, False):
        models.append(tiny_model("llama", num_blocks=1))
        run(models[-1], {**of_mlp(None), "in_turn": in_turn})
    for name in FEEDS:
        in_turn, at_once = (model.get_submodule(f"{MLP}{name}") for model in models)
        assert torch.equal(in_turn.up, at_once.up)
        assert torch.equal(in_turn.down, at_once.down)
    plain = tiny_model("llama", num_blocks=1).get_submodule(f"{MLP}down_proj")
    in_turn, at_once = (model.get_submodule(f"{MLP}down_proj") for model in models)
    assert torch.equal(at_once.weight, plain.weight)
    assert not torch.allclose(in_turn.weight, plain.weight, rtol=0.01)


def test_the_record_says_what_became_of_each() -> None:
    model = tiny_model("llama", num_blocks=1)
    notes = {name: layer.note for name, layer in run(model, of_mlp(None)).items()}
    assert notes[f"{MLP}down_proj"] == (
        "stays dense, fitted to the inputs that the matrices before it now give"
    )
    model = tiny_model("llama", num_blocks=1)
    dense = {"targets": [f"{MLP}up_proj"], "rank": None}
    stage = {"rank": 8, "targets": [f"{MLP}gate_proj", f"{MLP}up_proj"], "overrides": [dense]}
    before = model.get_submodule(f"{MLP}up_proj").weight.clone()
    layer = run(model, stage)[f"{MLP}up_proj"]
    assert layer.note == "stays dense: a rank was asked of others only"
    assert layer.rank is None
    assert torch.equal(model.get_submodule(f"{MLP}up_proj").weight, before)


def test_where_nothing_that_feeds_is_factored_all_stay_as_they_are() -> None:
    model, plain = tiny_model("llama", num_blocks=1), tiny_model("llama", num_blocks=1)
    dense = {"targets": [f"{MLP}down_proj"], "rank": None}
    output = "model.layers.0.self_attn.o_proj"
    stage = {"rank": 8, "targets": [output, f"{MLP}down_proj"], "overrides": [dense]}
    run(model, stage)
    run(plain, {**stage, "in_turn": False})
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("family", ["gpt2", "opt", "mixtral"])
def test_every_family_has_matrices_that_are_fed(family: str) -> None:
    """Those of experts are factored at once: two models route other tokens to them."""
    model, plain = tiny_model(family), tiny_model(family)
    stage = {"rank": 8, "write": "dense", "targets": ["re:.*"]}
    run(model, stage)
    run(plain, {**stage, "in_turn": False})
    changed = []
    for ours, theirs in zip(
        take_inventory(model).sites[0], take_inventory(plain).sites[0], strict=True
    ):
        if not torch.equal(ours.weight, theirs.weight):
            changed.append(ours.name.rpartition(".")[2])
    assert (
        changed
        == {
            "gpt2": ["c_proj", "c_proj"],
            "opt": ["out_proj", "fc2"],
            "mixtral": ["o_proj"],
        }[family]
    )


def test_a_budget_is_kept_in_turn_too() -> None:
    dense = tiny_model("llama")
    lost = []
    for in_turn in (True, False):
        model = copy.deepcopy(dense)
        found = run(model, {"budget": 0.1, "in_turn": in_turn})
        stored = sum(layer.num_parameters for layer in found.values())
        whole = sum(n * k for n, k in (site.shape for site in take_inventory(dense).all_sites))
        assert stored <= 0.9 * whole
        with torch.no_grad():
            error = model(input_ids=TOKENS).logits - dense(input_ids=TOKENS).logits
        lost.append(float(error.square().sum()))
    # On the tokens that it was fitted to, what least squares fit is nearer.
    assert lost[0] < lost[1]
