"""The factor stage: factors in place of matrices, ranks within a budget, LASER's cuts."""

import copy
import weakref
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from families import FAMILIES, tiny_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import SecateurError, compress, compress_with_report, lowrank
from secateur.calibration.inputs import BlockInputs, capture_inputs
from secateur.calibration.observe import observed
from secateur.calibration.tokens import CalibrationTokens
from secateur.lowrank import Cholesky
from secateur.models.inventory import take_inventory
from secateur.models.matrix_types import MatrixType, matrix_type
from secateur.models.trace import trace_blocks
from secateur.modules import LowRankLinear, SparseLowRankLinear
from secateur.progress import SilentProgress
from secateur.recipe import FactorStage
from secateur.recipe.factor_stage import MatrixTypeName
from secateur.report.record import FactorRecord
from secateur.stages.factor_group import FactorGroup, factor_group
from secateur.stages.factor_importance import (
    Importance,
    _importance,
    _Sums,
    measure_importance,
)
from secateur.stages.factor_plan import plan_factoring
from secateur.stages.factor_statistics import collect_moments
from secateur.stages.factor_weights import weights_of

BOOKS = Path(__file__).parents[1] / "examples" / "books-8m"
TOKENS = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(1))
OVERRIDE: dict[str, Any] = {"targets": ["re:.*q_proj"], "rank": 3}


def run(model: nn.Module, *stages: dict[str, Any], tokens: Tensor | None = TOKENS) -> FactorRecord:
    recipe = {"stages": [{"stage": "factor", **stage} for stage in stages]}
    _, report = compress_with_report(model, recipe, calibration=tokens, progress=SilentProgress())
    record = report.stages[-1]
    assert isinstance(record, FactorRecord)
    return record


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def layers(model: nn.Module) -> dict[str, LowRankLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRankLinear)}


DENSE_FAMILIES = [name for name in FAMILIES if "moe" not in name and name != "mixtral"]


@pytest.mark.parametrize("method", ["svd", "svd-whitened"])
@pytest.mark.parametrize("family", DENSE_FAMILIES)
def test_full_rank_changes_nothing(family: str, method: str) -> None:
    model = tiny_model(family)
    before = logits(model)
    sites = {site.name: min(site.shape) for site in take_inventory(model).all_sites}
    for rank in sorted(set(sites.values())):
        names = [name for name, smaller in sites.items() if smaller == rank]
        run(model, {"method": method, "rank": rank, "targets": names})
    assert set(layers(model)) == set(sites)
    assert torch.allclose(logits(model), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("method", ["svd", "svd-whitened"])
@pytest.mark.parametrize("budget", [0.1, 0.15])
def test_a_budget_is_kept(method: str, budget: float) -> None:
    model = tiny_model("llama")
    parameters = sum(p.numel() for p in model.parameters())
    sites = sum(site.weight.numel() for site in take_inventory(model).all_sites)
    record = run(model, {"method": method, "budget": budget})
    assert record.kept_fraction <= 1 - budget
    stored = sum(p.numel() for p in model.parameters())
    assert parameters - stored == sites - sum(layer.num_parameters for layer in record.layers)
    for layer in record.layers:
        assert (layer.rank is None) == (layer.name not in layers(model))
        assert layer.rank is None or layer.rank % 16 == 0
        assert layer.num_parameters <= layer.shape[0] * layer.shape[1]


def test_whitened_factors_change_outputs_less() -> None:
    errors = {}
    for method in ("svd", "svd-whitened"):
        model = tiny_model("llama", num_blocks=1)
        record = run(model, {"method": method, "rank": 8})
        known = [layer.output_error for layer in record.layers if layer.output_error is not None]
        errors[method] = sum(known) / len(known)
    assert errors["svd-whitened"] < errors["svd"]


def test_matrices_of_one_input_share_down() -> None:
    model = tiny_model("llama", num_blocks=1)
    record = run(model, {"method": "svd-whitened", "rank": 16, "joint": True})
    found = layers(model)
    attention = "model.layers.0.self_attn."
    holder = found[f"{attention}q_proj"]
    assert not holder.shares_down
    for name in ("k_proj", "v_proj"):
        assert found[attention + name].held_down() is holder.down
        assert f"{attention}{name}.down" not in model.state_dict()
    assert found["model.layers.0.mlp.up_proj"].shares_down
    by_name = {layer.name: layer.num_parameters for layer in record.layers}
    assert by_name[f"{attention}q_proj"] == 16 * (32 + 32)
    assert by_name[f"{attention}k_proj"] == 16 * 16
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), logits(model))
    holder.down.data.zero_()
    assert not torch.equal(logits(copied), logits(model))


def test_dense_targets_are_met_by_least_squares() -> None:
    model = tiny_model("llama", num_blocks=1).double()
    inventory = take_inventory(model)
    sites = [site for site in inventory.sites[0] if site.name.endswith("up_proj")]
    probe = {site.name: site.module for site in inventory.all_sites}
    trace = trace_blocks(model, inventory.blocks, probe, TOKENS[:1])
    tokens = CalibrationTokens(tuple(TOKENS), "test")
    streams = [
        capture_inputs(model, inventory.blocks, trace, tokens, 48, torch.device("cpu"))
        for _ in range(2)
    ]
    inputs, dense_inputs = streams
    for hidden in inputs.hidden:
        hidden += 0.5 * torch.randn(
            hidden.shape, generator=torch.Generator().manual_seed(3), dtype=hidden.dtype
        )
    seen: list[Tensor] = []
    with observed(sites, {sites[0].name: seen.append}):
        for stream in (dense_inputs, inputs):
            list(stream.stream(inventory.blocks.modules[0], 0))
    half = len(seen) // 2
    of_dense, of_inputs = (torch.cat(part).flatten(0, 1) for part in (seen[:half], seen[half:]))
    solution = torch.linalg.lstsq(of_inputs, of_dense @ sites[0].weight.T).solution.T

    moments = collect_moments(
        inventory.blocks.modules[0], 0, sites, (inputs, dense_inputs), trace, torch.device("cpu")
    )
    stage = FactorStage(method="svd-whitened", rank=32, dense_targets=True, damping=0.0)
    found = factor_group(FactorGroup(tuple(sites)), 32, stage, moments[sites[0].name], 6)
    # The moments are summed in fp32.
    assert torch.allclose(found[0].dense().double(), solution, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dense_targets", "most"), [(False, 1), (True, 2)])
def test_no_more_activations_are_held_than_streams(
    dense_targets: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    def watched(*args: Any) -> BlockInputs:
        held.append(sum(buffer() is not None for buffer in alive))
        inputs = capture_inputs(*args)
        alive.append(weakref.ref(inputs.hidden[0]))
        return inputs

    monkeypatch.setattr("secateur.run_stages.capture_inputs", watched)
    stage = {"method": "svd-whitened", "budget": 0.1, "importance": "output"}
    run(tiny_model("llama"), {**stage, "dense_targets": dense_targets})
    assert max(held) + 1 == most


def test_importance_is_that_of_plain_autograd() -> None:
    model = tiny_model("gpt2")
    sites = take_inventory(model).all_sites
    tokens = CalibrationTokens(tuple(TOKENS), "test")
    found = measure_importance(model, sites, tokens, with_directions=True)
    assert found is not None
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    site = sites[3]
    hook = site.module.register_forward_hook(keep)
    for sample in TOKENS:
        logits = model(input_ids=sample[None], use_cache=False).logits[0]
        nn.functional.cross_entropy(logits[:-1], sample[1:], reduction="sum").backward()
    hook.remove()
    bias = site.module.get_parameter("bias").detach().double()
    plain = torch.cat([output.detach() for output in outputs]).double() - bias
    gradients = torch.cat([output.grad for output in outputs if output.grad is not None]).double()
    count = TOKENS.numel()
    energy = gradients.square().sum() / count * (plain.square().sum() / count)
    assert found[site.name].whole == pytest.approx(float(energy) / site.shape[0], rel=1e-4)
    moment = (gradients.flatten(0, 1).T @ gradients.flatten(0, 1) / count).float()
    measured = found[site.name].gradients
    assert measured is not None
    # Summed in fp32 over 144 tokens.
    torch.testing.assert_close(measured, moment, rtol=1e-4, atol=1e-4 * float(moment.abs().max()))
    plainly = measure_importance(model, sites, tokens)
    assert plainly is not None
    assert plainly[site.name].whole == found[site.name].whole
    assert plainly[site.name].gradients is None


def test_importance_needs_layers_that_can_be_watched() -> None:
    model = tiny_model("mixtral")
    sites = take_inventory(model).all_sites
    assert measure_importance(model, sites, CalibrationTokens(tuple(TOKENS), "test")) is None


def ranks_with(importance: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found = {name: Importance(whole) for name, whole in importance.items()}
    monkeypatch.setattr("secateur.stages.factor.measure_importance", lambda *_: found)
    record = run(tiny_model("llama"), {"budget": 0.1, "importance": "loss"})
    # Staying dense is more than any rank.
    return {layer.name: layer.rank or 1000 for layer in record.layers}


def test_ranks_follow_the_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [site.name for site in take_inventory(tiny_model("llama")).all_sites]
    name = "model.layers.1.mlp.up_proj"
    high = ranks_with({site: 1e6 if site == name else 1.0 for site in sites}, monkeypatch)
    low = ranks_with({site: 1e-6 if site == name else 1.0 for site in sites}, monkeypatch)
    assert high[name] == 1000
    assert low[name] == 16


def test_relative_outputs_do_without_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("measured importance")

    monkeypatch.setattr("secateur.stages.factor.measure_importance", fail)
    stage = {"method": "svd-whitened", "budget": 0.12, "joint": True, "importance": "output"}
    assert run(tiny_model("llama"), stage).kept_fraction <= 0.88


def test_given_ranks_do_without_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> dict[str, float]:
        raise AssertionError("the importance shares out ranks, and they are given")

    monkeypatch.setattr("secateur.stages.factor.measure_importance", refuse)
    run(tiny_model("llama"), {"method": "svd-whitened", "rank": 16})


@pytest.mark.parametrize(
    ("more", "weighed"),
    [
        ({}, "directions"),
        ({"joint": True}, "directions"),
        ({"importance": "output"}, "output"),
        ({"in_turn": False}, "loss"),
        ({"dense_targets": True}, "loss"),
        ({"method": "svd"}, None),
    ],
)
def test_what_errors_count_of_a_budget(more: dict[str, Any], weighed: str | None) -> None:
    """Directions are for small errors: at once they lost more than `loss` where much was cut."""
    assert run(tiny_model("llama"), {"budget": 0.1, **more}).importance == weighed


DIRECTIONS = {"method": "svd-whitened", "importance": "directions"}


@pytest.mark.parametrize("more", [{}, {"joint": True}, {"dense_targets": True}, {"exact": False}])
def test_full_rank_changes_nothing_whatever_the_directions(more: dict[str, Any]) -> None:
    model = tiny_model("llama")
    before = logits(model)
    wide = ["re:.*mlp.*", "re:.*(q|o)_proj"]
    run(model, {**DIRECTIONS, "rank": 32, "damping": 1e-3, "targets": wide, **more})
    assert len(layers(model)) == 10
    # Factors are fp32, and stretched by what damping leaves of gradients: 1e-3 of their mean.
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)


def test_importance_of_a_stage_made_in_python() -> None:
    with pytest.raises(SecateurError, match="importance one of directions, loss, output, got 'x'"):
        FactorStage(rank=2, importance="x")  # type: ignore[arg-type]


def loss_change(model: nn.Module, name: str, error: Tensor) -> float:
    """Mean square of what an error of one matrix moves the loss by, token by token."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        seen.extend((args[0], output))

    hook = model.get_submodule(name).register_forward_hook(keep)
    moved = []
    for sample in TOKENS:
        found = model(input_ids=sample[None], use_cache=False).logits[0]
        nn.functional.cross_entropy(found[:-1], sample[1:], reduction="sum").backward()
        inputs, output = seen
        assert output.grad is not None
        moved.append((output.grad.double() * (inputs.double() @ error.double().T)).sum(-1))
        seen.clear()
    hook.remove()
    return float(torch.cat(moved).square().mean())


def test_factors_follow_the_directions_that_the_loss_feels() -> None:
    name = "model.layers.1.mlp.up_proj"
    changes = []
    for importance in ("directions", "output"):
        model = tiny_model("llama")
        run(model, {**DIRECTIONS, "importance": importance, "rank": 8, "targets": [name]})
        error = layers(model)[name].to_linear().weight - weight_of(tiny_model("llama"), name)
        changes.append(loss_change(tiny_model("llama"), name, error.detach()))
    # On the very tokens that they were fitted to; the two are not independent there.
    assert changes[0] < 0.9 * changes[1]


def weight_of(model: nn.Module, name: str) -> Tensor:
    found = model.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("joint", [False, True])
def test_budgets_hold_by_directions(joint: bool) -> None:
    model = tiny_model("llama")
    record = run(model, {**DIRECTIONS, "budget": 0.12, "joint": joint})
    assert record.kept_fraction <= 0.88
    assert record.importance == "directions"
    assert not record.warnings
    assert torch.isfinite(logits(model)).all()


def test_ranks_follow_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    sites = take_inventory(model).all_sites
    name = "model.layers.1.mlp.up_proj"

    def given(scale: float) -> dict[str, Importance]:
        return {
            site.name: Importance(
                1.0, torch.eye(site.shape[0]) * (scale if site.name == name else 1.0)
            )
            for site in sites
        }

    ranks = []
    for scale in (1e6, 1e-6):
        monkeypatch.setattr(
            "secateur.stages.factor.measure_importance", lambda *_, s=scale: given(s)
        )
        record = run(tiny_model("llama"), {**DIRECTIONS, "budget": 0.1})
        ranks.append({layer.name: layer.rank or 1000 for layer in record.layers}[name])
    assert ranks == [1000, 16]


def test_overrides_hold_by_directions() -> None:
    record = run(tiny_model("llama"), {**DIRECTIONS, "rank": 8, "overrides": [OVERRIDE]})
    ranks = {layer.name: layer.rank for layer in record.layers}
    assert ranks["model.layers.1.self_attn.q_proj"] == 3
    assert ranks["model.layers.1.self_attn.k_proj"] == 8


@pytest.mark.parametrize("importance", ["directions", "loss"])
def test_what_importance_cannot_be_measured_for_is_told(importance: str) -> None:
    """Slices of fused experts hold no layer to watch; all is then as with `output`."""
    models = [tiny_model("mixtral"), tiny_model("mixtral")]
    stage = {"method": "svd-whitened", "budget": 0.05, "write": "dense"}
    record = run(models[0], {**stage, "importance": importance})
    assert f"importance {importance} could not be measured for all" in " ".join(record.warnings)
    assert record.importance == "output"
    run(models[1], {**stage, "importance": "output"})
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_where_directions_do_not_fit_the_whole_outputs_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summed_up: list[weakref.ref[Tensor]] = []
    asked: list[bool] = []

    def tight(*args: Any) -> dict[str, Importance] | None:
        asked.append(args[3])
        if args[3]:
            sums = torch.zeros(1)
            summed_up.append(weakref.ref(sums))
            raise torch.OutOfMemoryError("no memory, as the test wants it")
        # What did not fit has been let go.
        assert all(sums() is None for sums in summed_up)
        return measure_importance(*args)

    models = [tiny_model("llama"), tiny_model("llama")]
    monkeypatch.setattr("secateur.stages.factor.measure_importance", tight)
    record = run(models[0], {**DIRECTIONS, "budget": 0.1})
    assert "does not fit in memory" in " ".join(record.warnings)
    assert asked == [True, False]
    assert record.importance == "loss"
    run(models[1], {**DIRECTIONS, "importance": "loss", "budget": 0.1})
    assert torch.equal(logits(models[0]), logits(models[1]))
    # Given ranks need no other importance.
    asked.clear()
    record = run(tiny_model("llama"), {**DIRECTIONS, "rank": 8})
    assert "does not fit in memory" in " ".join(record.warnings)
    assert asked == [True]
    assert record.importance is None


def test_gradients_are_averaged_where_they_were_summed_up() -> None:
    site = take_inventory(tiny_model("llama")).all_sites[0]
    sums = torch.eye(site.shape[0])
    found = _importance(_Sums(1.0, 1.0, 2, sums), site, 4)
    assert found.gradients is sums
    assert torch.equal(sums, torch.eye(site.shape[0]) / 4)


def test_directions_of_a_matrix_that_calibration_does_not_reach_again() -> None:
    """Routers may send its only tokens elsewhere when batches differ."""
    site = take_inventory(tiny_model("llama")).all_sites[0]
    rows, columns = site.shape
    root = Cholesky(torch.eye(columns, dtype=torch.float64), 0.0)
    importance = {site.name: Importance(3.0, torch.eye(rows))}
    weights = weights_of([site], [site.weight], root, importance, 0.0)
    assert weights.worth(8.0, tokens_a_sample=2.0) == 2.0
    assert weights.worth(8.0, tokens_a_sample=0.0) == 3.0


def test_directions_that_no_memory_holds_are_refused_beforehand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = tiny_model("llama"), CalibrationTokens(tuple(TOKENS), "test")
    sites = take_inventory(model).all_sites
    free = "secateur.stages.factor_importance.available_host_bytes"
    needed = sum(4 * site.shape[0] ** 2 for site in sites)
    monkeypatch.setattr(free, lambda: needed)
    assert measure_importance(model, sites, tokens, True)
    monkeypatch.setattr(free, lambda: needed - 1)
    with pytest.raises(torch.OutOfMemoryError, match=r"gradients of 14 matrices, got 0\.0 GB"):
        measure_importance(model, sites, tokens, True)


def test_without_directions_a_backward_pass_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def tight(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory, as the test wants it")

    monkeypatch.setattr("secateur.stages.factor.measure_importance", tight)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny_model("llama"), {"budget": 0.1})


def test_overrides_give_other_ranks_in_one_pass() -> None:
    names = {kind: f"model.layers.0.self_attn.{kind}_proj" for kind in ("q", "o")}
    overrides = [
        {"targets": ["re:.*self_attn.*"], "rank": 4},
        {"targets": [names["o"]], "rank": 6},
    ]
    record = run(tiny_model("llama"), {"rank": 8, "overrides": overrides})
    ranks = {layer.name: layer.rank for layer in record.layers}
    assert (ranks[names["q"]], ranks[names["o"]]) == (4, 6)
    assert {rank for name, rank in ranks.items() if ".mlp." in name} == {8}
    # The same factors as a stage of that rank alone makes of the first matrix.
    run(model := tiny_model("llama"), {"rank": 8, "overrides": overrides})
    run(alone := tiny_model("llama"), {"rank": 4, "targets": [names["q"]]})
    assert torch.equal(layers(model)[names["q"]].up, layers(alone)[names["q"]].up)


def test_a_matrix_with_small_outputs_gets_its_share_of_a_stack() -> None:
    model = tiny_model("llama", num_blocks=1)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(1e-3)
    record = run(model, {"method": "svd-whitened", "rank": 16, "joint": True})
    errors = {layer.name.split(".")[-1]: layer.output_error or 0.0 for layer in record.layers}
    assert errors["v_proj"] < 1.5 * errors["k_proj"]


def test_matrix_types_are_the_same_everywhere() -> None:
    assert get_args(lowrank.MatrixType) == get_args(MatrixType) == get_args(MatrixTypeName)


def test_sparse_plus_low_rank() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    plain = tiny_model("llama").to(torch.bfloat16)
    ignored = {"ignore": ["re:.*k_proj"]}
    record = run(model, {"method": "sparse-plus-low-rank", "rank": 8, "rounds": 2, **ignored})
    pruned = {"stage": "prune", "method": "wanda", "pattern": "2:4", **ignored}
    _, report = compress_with_report(
        plain, {"stages": [pruned]}, calibration=TOKENS, progress=SilentProgress()
    )
    for name, module in model.named_modules():
        if isinstance(module, SparseLowRankLinear):
            kept = module.dense_weight() != 0
            assert int(kept.view(kept.shape[0], -1, 4).sum(2).max()) <= 2, name
    sparse_only = {layer.name: layer.output_error for layer in report.stages[0].layers}  # type: ignore[union-attr]
    for layer in record.layers:
        assert layer.output_error is not None
        assert layer.output_error < (sparse_only[layer.name] or 0)
        rows, columns = layer.shape
        assert layer.num_parameters == rows * columns // 2 + 16 * (rows + columns)


@pytest.mark.parametrize("budget", [0.1, 0.2, 0.3, 0.4])
def test_the_budget_is_spent_beside_two_of_four(budget: float) -> None:
    config = AutoConfig.from_pretrained(BOOKS)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    stage = FactorStage(method="sparse-plus-low-rank", budget=budget)
    plan = plan_factoring(stage, take_inventory(model))
    shapes = {site.name: site.shape for block in plan.sites for site in block}
    ranks = {name: rank for name, rank in plan.ranks.items() if rank is not None}
    assert ranks.keys() == shapes.keys()
    values = sum(n * k for n, k in shapes.values())
    left = (0.5 - budget) * values - sum(ranks[x] * (n + k) for x, (n, k) in shapes.items())
    # Another step fits in no matrix.
    assert 0 <= left < 16 * min(n + k for n, k in shapes.values())
    for name, (n, k) in shapes.items():
        assert ranks[name] % 16 == 0
        share = (0.5 - budget) * n * k / (n + k)
        assert share - 16 < ranks[name] <= max(16, share) + 16, name
    assert not plan.warnings


@pytest.mark.parametrize("exact", [True, False])
def test_laser_cuts_one_matrix_to_its_best_approximation(exact: bool) -> None:
    model = tiny_model("llama")
    old = {name: p.clone() for name, p in model.state_dict().items()}
    cut = {"matrix": "mlp_in", "block": 1, "fraction": 0.25}
    record = run(model, {"method": "laser", "interventions": [cut], "exact": exact}, tokens=None)
    name = "model.layers.1.mlp.gate_proj.weight"
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, old[key])]
    assert changed == [name]
    error = torch.linalg.matrix_norm(model.state_dict()[name].double() - old[name].double())
    tail = torch.linalg.svdvals(old[name].double())[8:].square().sum().sqrt()
    assert float(error) == pytest.approx(float(tail), rel=1e-4 if exact else 0.02)
    assert record.layers[0].rank == 8
    assert record.stored_dense
    assert record.layers[0].output_error is None
    assert ("randomised SVD: Frobenius error" in record.layers[0].note) == (not exact)


def test_laser_as_factors() -> None:
    model, dense = tiny_model("gpt2"), tiny_model("gpt2")
    stage = {
        "method": "laser",
        "interventions": [{"matrix": "mlp_out", "block": 0, "fraction": 0.25}],
    }
    as_factors = run(model, {**stage, "write": "factors"}, tokens=None)
    as_matrix = run(dense, stage, tokens=None)
    assert (as_factors.stored_dense, as_matrix.stored_dense) == (False, True)
    assert list(layers(model)) == ["transformer.h.0.mlp.c_proj"]
    assert torch.allclose(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


def test_later_stages_leave_factors_alone() -> None:
    model = tiny_model("llama", num_blocks=3)
    stages = [
        {"stage": "factor", "method": "svd", "rank": 8, "targets": ["re:.*self_attn.*"]},
        {"stage": "prune", "method": "magnitude", "pattern": "2:4"},
        {"stage": "drop_blocks", "blocks": [1]},
    ]
    compress(model, {"stages": stages}, calibration=TOKENS, progress=SilentProgress())
    assert len(layers(model)) == 8
    assert all(bool((layer.up != 0).any()) for layer in layers(model).values())
    logits(model)


@pytest.mark.parametrize("family", DENSE_FAMILIES)
def test_every_family_has_its_matrix_types(family: str) -> None:
    sites = take_inventory(tiny_model(family)).sites[0]
    types = [matrix_type(site) for site in sites]
    named = [kind for kind in types if kind is not None]
    assert len(set(named)) == len(named)
    assert {"o", "mlp_in", "mlp_out"} <= set(named)
    assert {"q", "k", "v"} <= set(named) or "qkv" in named
    assert None not in types


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"method": "pca"}, "expected"),
        ({"method": "svd"}, "svd needs either `budget` or `rank`, and not both"),
        ({"method": "svd", "budget": 0.2, "rank": 4}, "either `budget` or `rank`"),
        ({"method": "svd", "budget": 1.0}, "expected a budget above 0 and below 1, got 1.0"),
        ({"method": "svd", "rank": 0}, "expected rank >= 1, got 0"),
        ({"method": "svd", "rank": 33}, r"expected a rank of at most min\(N, K\), got 33"),
        (
            {"method": "svd", "budget": 0.999},
            "expected a budget of at most 0.167 for these 14 matrices",
        ),
        ({"method": "svd", "budget": 0.999, "joint": True}, "expected a budget of at least"),
        ({"method": "svd", "rank": 2, "damping": -1.0}, "expected damping >= 0"),
        (
            {"rank": 2, "importance": "size"},
            "importance: expected one of directions, loss, output, got 'size'",
        ),
        (
            {"method": "svd", "rank": 2, "importance": "directions"},
            "importance directions is for svd-whitened, not for svd",
        ),
        ({"method": "svd", "rank": 2, "in_turn": True}, "in_turn is for svd-whitened, not for svd"),
        (
            {"rank": 2, "in_turn": True, "dense_targets": True},
            "in_turn fits to the dense block, dense_targets to the dense model: choose one",
        ),
        (
            {"method": "svd", "rank": 2, "dense_targets": True},
            "dense_targets is for svd-whitened, not for svd",
        ),
        ({"rank": 2, "importance_samples": 0}, "at least 1 importance sample, got 0"),
        ({"method": "svd", "rank": 2, "targets": []}, "`targets` must name at least one layer"),
        ({"method": "svd", "rank": 2, "targets": ["nothing"]}, "nothing"),
        ({"method": "sparse-plus-low-rank", "budget": 0.5}, "expected a budget below 0.5"),
        ({"method": "sparse-plus-low-rank", "rank": 2, "joint": True}, "one matrix at a time"),
        ({"method": "sparse-plus-low-rank", "rank": 2, "rounds": 0}, "at least 1 round"),
        (
            {"method": "sparse-plus-low-rank", "rank": 2},
            "expected weights in bfloat16 or float16 to be packed as 2:4, got torch.float32",
        ),
        (
            {"method": "sparse-plus-low-rank", "budget": 0.4, "write": "dense"},
            "expected a budget of at most 0.000 for these 14 matrices",
        ),
        ({"method": "svd", "budget": 0.2, "overrides": [OVERRIDE]}, "expected a rank, and no"),
        ({"method": "svd", "rank": 2, "joint": True, "overrides": [OVERRIDE]}, "and no `joint`"),
        ({"method": "svd", "rank": 2, "overrides": [OVERRIDE | {"rank": 33}]}, "got 33 for"),
        ({"method": "svd", "rank": 2, "overrides": [OVERRIDE | {"rank": 0}]}, "rank >= 1, got 0"),
        (
            {"method": "svd", "rank": 2, "overrides": [OVERRIDE | {"targets": ["nothing"]}]},
            "override target 'nothing' matches none",
        ),
        ({"method": "laser"}, "laser needs at least one intervention"),
        (
            {
                "method": "laser",
                "joint": True,
                "interventions": [{"matrix": "q", "block": 0, "fraction": 0.5}],
            },
            "laser cuts single matrices: leave out `joint`",
        ),
        ({"method": "svd", "rank": 33, "joint": True}, r"got 33 for .*q_proj \[64, 32\]"),
        (
            {"method": "svd", "rank": 22, "joint": True, "strict": True},
            r"q_proj: rank 32 of a weight \[64, 32\] stores 3,072 values",
        ),
        (
            {"method": "svd", "rank": 9, "strict": True, "targets": ["re:.*k_proj"]},
            "rank 16 of a weight",
        ),
        (
            {"method": "svd", "rank": 2, "interventions": [{}]},
            "interventions",
        ),
        (
            {"method": "svd", "rank": 30, "strict": True, "targets": ["re:.*q_proj"]},
            r"rank 32 of a weight \[32, 32\] stores 2,048 values, more than the 1,024",
        ),
    ],
)
def test_bad_input(stage: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(SecateurError, match=message):
        run(model, stage)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([{"matrix": "mlp_in", "block": 2, "fraction": 0.5}], "the model has blocks 0 to 1"),
        ([{"matrix": "w", "block": 0, "fraction": 0.5}], "matrix"),
        ([{"matrix": "q", "block": -1, "fraction": 0.5}], "expected a block of at least 0"),
        ([{"matrix": "q", "block": 0, "fraction": 1.0}], "above 0 and below 1, got 1.0"),
        ([{"matrix": "q", "block": 0, "fraction": 0.5}] * 2, "named by two interventions"),
    ],
)
def test_bad_interventions(cuts: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        run(tiny_model("llama"), {"method": "laser", "interventions": cuts}, tokens=None)


def test_a_matrix_type_that_a_family_lacks() -> None:
    cut = {"matrix": "q", "block": 0, "fraction": 0.5}
    with pytest.raises(
        SecateurError, match="block 0 has no matrix of type q; it has: qkv, o, mlp_in"
    ):
        run(tiny_model("gpt2"), {"method": "laser", "interventions": [cut]}, tokens=None)


def test_ranks_above_the_break_even_are_told() -> None:
    record = run(
        tiny_model("llama"), {"method": "svd", "rank": 30, "targets": ["re:.*q_proj"]}, tokens=None
    )
    assert any("the break-even rank is 16" in warning for warning in record.warnings)


def test_weights_that_were_replaced_are_let_go_at_once() -> None:
    model = tiny_model("llama", num_blocks=1)
    weights = [weakref.ref(site.parameter) for site in take_inventory(model).all_sites]
    left: list[int] = []

    class Counting(SilentProgress):
        def advance(self, detail: str = "") -> None:
            if detail.startswith("block 0"):
                left.append(sum(weight() is not None for weight in weights))

    stage = {"stage": "factor", "method": "svd", "rank": 8}
    compress_with_report(model, {"stages": [stage]}, progress=Counting())
    assert left == [6, 5, 4, 3, 2, 1, 0]


def test_fused_experts_stay_or_are_written_densely() -> None:
    with pytest.raises(SecateurError, match="is a slice of a fused parameter"):
        run(tiny_model("mixtral"), {"method": "svd", "rank": 4}, tokens=None)
    model = tiny_model("mixtral")
    run(model, {"method": "svd", "rank": 4, "write": "dense"})
    experts = [site for site in take_inventory(model).all_sites if site.is_expert]
    assert int(torch.linalg.matrix_rank(experts[0].weight, rtol=1e-4)) == 4


def test_joint_ranks_are_those_of_the_stack() -> None:
    model = tiny_model("llama", num_blocks=1)
    record = run(model, {"method": "svd", "rank": 14, "joint": True, "strict": True})
    stored = {layer.name.split(".")[-1]: layer.num_parameters for layer in record.layers}
    assert stored["q_proj"] + stored["k_proj"] + stored["v_proj"] == 16 * (64 + 32)
    assert not record.warnings


def test_matrices_that_stay_dense_are_told_one_by_one() -> None:
    model = tiny_model("llama")
    record = run(model, {"method": "svd-whitened", "budget": 0.05, "joint": True})
    shapes = {site.name: site.shape for site in take_inventory(tiny_model("llama")).all_sites}
    assert {layer.name: layer.shape for layer in record.layers} == shapes
    assert any(layer.rank is None for layer in record.layers)


def test_joint_factors_need_a_run_of_the_model() -> None:
    with pytest.raises(SecateurError, match="this recipe needs calibration"):
        run(tiny_model("llama"), {"method": "svd", "rank": 8, "joint": True}, tokens=None)


@pytest.mark.parametrize("method", ["svd-whitened", "sparse-plus-low-rank"])
def test_experts_that_no_token_reached_are_factored_by_weights_alone(method: str) -> None:
    model = tiny_model("mixtral")
    record = run(
        model, {"method": method, "rank": 4, "write": "dense", "rounds": 1}, tokens=TOKENS[:1, :2]
    )
    unseen = [layer for layer in record.layers if layer.num_tokens == 0]
    assert unseen
    assert all("no calibration token was seen" in layer.note for layer in unseen)
    assert torch.isfinite(logits(model)).all()


def test_what_a_budget_leaves_dense_can_be_pruned() -> None:
    model = tiny_model("llama")
    stages = [
        {"stage": "factor", "method": "svd-whitened", "budget": 0.05},
        {"stage": "prune", "method": "wanda", "pattern": "2:4"},
    ]
    compress(model, {"stages": stages}, calibration=TOKENS, progress=SilentProgress())
    assert layers(model)
    assert take_inventory(model).all_sites


def test_frozen_weights_stay_frozen() -> None:
    model = tiny_model("llama").requires_grad_(False)
    run(model, {"method": "svd", "rank": 8}, tokens=None)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_are_not_finite() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(SecateurError, match="NaN or Inf"):
        run(model, {"method": "svd", "rank": 2}, tokens=None)


def test_calibration_is_needed_where_activations_decide() -> None:
    with pytest.raises(SecateurError, match="this recipe needs calibration"):
        run(tiny_model("llama"), {"method": "svd-whitened", "rank": 4}, tokens=None)
