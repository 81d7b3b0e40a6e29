"""Matrices that lead out of attention and MLP, fitted to what those that feed them now give."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

import secateur
from secateur import compress_with_report
from secateur.checkpoint.verify import verify_checkpoint
from secateur.models.inventory import take_inventory
from secateur.modules import LowRankLinear
from secateur.progress import SilentProgress
from secateur.recipe import FactorStage, Intervention, PruneStage
from secateur.recipe.factor_stage import RankOverride
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


def input_of(model: nn.Module, name: str = f"{MLP}down_proj") -> Tensor:
    """[tokens, K]."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
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
    before, after = input_of(dense), input_of(model)
    assert not torch.allclose(before, after, rtol=0.1)
    wanted = before @ dense.get_submodule(f"{MLP}down_proj").weight.T
    solution = torch.linalg.lstsq(after, wanted).solution.T
    layer = model.get_submodule(f"{MLP}down_proj")
    # Of full rank the factors are the matrix.
    weight = layer.to_linear().weight if isinstance(layer, LowRankLinear) else layer.weight
    assert isinstance(layer, LowRankLinear) == (rank is not None)
    # The moments are summed in fp32.
    torch.testing.assert_close(weight.detach(), solution, rtol=1e-3, atol=1e-3)


Q_1 = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "fitted"),
    [
        (f"{MLP}down_proj", {"in_turn": True}),
        (f"{MLP}down_proj", of_mlp(None)),
        (Q_1, {"in_turn": False, "dense_targets": True}),
    ],
    ids=["in turn", "in turn, but dense", "dense targets"],
)
def test_errors_are_against_the_outputs_that_were_fitted(name: str, fitted: dict[str, Any]) -> None:
    dense = tiny_model("llama").double()
    model = copy.deepcopy(dense)
    targets = [*(f"{MLP}{feeds}" for feeds in FEEDS), name]
    layer = run(model, {"rank": 8, "targets": targets, **fitted})[name]
    # All tokens are in the sample on which it is measured.
    with torch.no_grad():
        wanted = dense.get_submodule(name)(input_of(dense, name))
        found = model.get_submodule(name)(input_of(model, name))
        expected = float((found - wanted).norm() / wanted.norm())
    # The outputs are fp32 sums of up to 64 products.
    assert layer.num_tokens == TOKENS.numel()
    assert layer.output_error == pytest.approx(expected, rel=64 * torch.finfo(torch.float32).eps)


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


FED = {
    "phi3": {"o_proj", "down_proj"},
    "gpt2": {"c_proj"},
    "opt": {"out_proj", "fc2"},
    "gpt_neox": {"dense", "dense_4h_to_h"},
    "gptj": {"out_proj", "fc_out"},
    "mixtral": {"o_proj"},
    "qwen3_moe": {"o_proj", "down_proj"},
    "llama4": {"o_proj", "down_proj"},
    "gpt_oss": {"o_proj"},
}


@pytest.mark.parametrize("family", FED)
def test_every_family_has_matrices_that_are_fed(family: str) -> None:
    """Those of experts are factored at once: two models route other tokens to them."""
    model, plain = tiny_model(family), tiny_model(family)
    stage = {"rank": 8, "write": "dense", "targets": ["re:.*"]}
    run(model, {**stage, "in_turn": None})
    run(plain, {**stage, "in_turn": False})
    ours, theirs = (take_inventory(found).sites[0] for found in (model, plain))
    changed = [
        a.name for a, b in zip(ours, theirs, strict=True) if not torch.equal(a.weight, b.weight)
    ]
    assert {name.rpartition(".")[2] for name in changed} == FED[family]
    assert not any(".experts." in name for name in changed)


def test_where_nothing_is_fed_no_block_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: nn.Module) -> nn.Module:
        raise AssertionError("a block is copied")

    stage = {"rank": 8, "targets": ["re:.*(q|up)_proj"]}
    models = [tiny_model("llama"), tiny_model("llama")]
    run(models[0], {**stage, "in_turn": False})
    monkeypatch.setattr("secateur.stages.factor.copy.deepcopy", refuse)
    run(models[1], {**stage, "in_turn": None})
    for at_once, ours in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(at_once, ours)


def test_it_is_the_default_where_it_can_be() -> None:
    assert FactorStage(rank=8).fits_in_turn
    assert FactorStage(rank=8, joint=True).fits_in_turn
    assert not FactorStage(rank=8, in_turn=False).fits_in_turn
    assert not FactorStage(rank=8, dense_targets=True).fits_in_turn
    assert not FactorStage(rank=8, method="svd").fits_in_turn
    cut = Intervention(matrix="q", block=0, fraction=0.5)
    assert not FactorStage(method="laser", interventions=(cut,)).fits_in_turn


@pytest.mark.parametrize("sized", [{"rank": 16}, {"budget": 0.1}])
def test_it_takes_two_more_runs_of_a_block(sized: dict[str, Any]) -> None:
    counts = []
    for in_turn in (None, False):
        model = tiny_model("llama")
        runs: list[nn.Module] = []
        # The copy of a block has its hook, too.
        model.get_submodule("model.layers.0").register_forward_pre_hook(
            lambda module, _, runs=runs: runs.append(module)
        )
        run(model, {**sized, "in_turn": in_turn})
        counts.append(len(runs))
    in_turn_runs, at_once_runs = counts
    assert in_turn_runs == at_once_runs + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("joint", [False, True])
def test_a_budget_is_kept_in_turn_too(joint: bool, dtype: torch.dtype) -> None:
    dense = tiny_model("llama").to(dtype)
    lost = []
    for in_turn in (True, False):
        model = copy.deepcopy(dense)
        found = run(model, {"budget": 0.1, "joint": joint, "in_turn": in_turn})
        stored = sum(layer.num_parameters for layer in found.values())
        whole = sum(n * k for n, k in (site.shape for site in take_inventory(dense).all_sites))
        assert stored <= 0.9 * whole
        with torch.no_grad():
            error = model(input_ids=TOKENS).logits - dense(input_ids=TOKENS).logits
        lost.append(float(error.square().sum()))
    # On the tokens that it was fitted to, what least squares fit is nearer.
    assert lost[0] < lost[1]


def test_what_stays_dense_keeps_the_zeros_of_a_stage_before() -> None:
    dense = tiny_model("llama", num_blocks=1).double()
    name = f"{MLP}down_proj"
    prune = PruneStage(method="magnitude", pattern="2:4", targets=(name,))
    pruned = secateur.compress(copy.deepcopy(dense), prune)
    keep_mask = pruned.get_submodule(name).weight != 0
    model = copy.deepcopy(pruned)
    found = run(model, {**of_mlp(None), "damping": 0.0})
    assert found[name].note.startswith("stays dense, fitted")
    weight = model.get_submodule(name).weight
    assert torch.equal(weight != 0, keep_mask)
    # Row by row the least squares over what is kept.
    before, after = input_of(pruned), input_of(model)
    wanted = before @ pruned.get_submodule(name).weight.T
    for row, kept in enumerate(keep_mask):
        solution = torch.linalg.lstsq(after[:, kept], wanted[:, row : row + 1]).solution[:, 0]
        left = after @ weight[row] - wanted[:, row]
        least = after[:, kept] @ solution - wanted[:, row]
        assert left.norm() <= 1.02 * least.norm()


def test_pruned_and_then_factored_models_verify(tmp_path: Path) -> None:
    left_dense = RankOverride(targets=("re:.*(o|down)_proj",), rank=None)
    stages = [
        PruneStage(method="magnitude", pattern="2:4"),
        FactorStage(method="svd-whitened", rank=8, overrides=(left_dense,)),
    ]
    secateur.compress(tiny_model("llama"), stages, calibration=TOKENS, output=tmp_path / "out")
    assert all(check.passed for check in verify_checkpoint(tmp_path / "out"))
