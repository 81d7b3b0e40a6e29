"""Experts that are stored [experts, K, N], through the whole chain, against masks by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import TURNED_EXPERTS, VOCAB_SIZE, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from secateur.checkpoint.verify import verify_checkpoint
from secateur.compress import compress_with_report
from secateur.report.record import PruneRecord


def some_ids() -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (6, 16), generator=torch.Generator().manual_seed(0))


def two_of_four(score: Tensor) -> Tensor:
    """True for the best two of every four down a column: bool [K, N]."""
    groups = score.T.reshape(-1, 4)
    best = groups.argsort(dim=1, descending=True, stable=True)[:, :2]
    mask = torch.zeros(groups.shape, dtype=torch.bool).scatter(1, best, True)
    return mask.view(score.T.shape).T


def rows_by_expert(family: str, model: nn.Module, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What enters the two matrices of every expert of block 0: [t, 32] and [t, 64]."""
    block: Any = model.get_submodule("model.layers.0")
    experts = (block.feed_forward if family == "llama4" else block.mlp).experts
    calls: list[tuple[Tensor, ...]] = []
    hook = experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    hook.remove()
    (arguments,) = calls
    found = []
    for expert in range(4):
        if family == "llama4":
            rows = arguments[0].view(4, -1, 32)[expert]
            gate, up = (rows @ experts.gate_up_proj[expert]).chunk(2, dim=1)
            inner = nn.functional.silu(gate) * up
        else:
            rows = arguments[0][(arguments[1] == expert).any(dim=1)]
            both = rows @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            inner = experts._apply_gate(both)
        found.append((rows, inner))
    return found


@pytest.mark.parametrize("family", TURNED_EXPERTS)
def test_pruned_along_their_inputs_by_their_own_tokens(family: str, tmp_path: Path) -> None:
    dense, ids = tiny_model(family), some_ids()
    recipe = {
        "stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4", "min_expert_tokens": 1}]
    }
    model, report = compress_with_report(
        tiny_model(family), recipe, calibration=ids, output=tmp_path / "out"
    )
    layer = "feed_forward" if family == "llama4" else "mlp"
    name = f"model.layers.0.{layer}.experts"
    before: Any = dense.get_submodule(name)
    after: Any = model.get_submodule(name)
    rows = rows_by_expert(family, dense, ids)
    for expert, (outer, inner) in enumerate(rows):
        for parameter, entering in (("gate_up_proj", outer), ("down_proj", inner)):
            weight = getattr(before, parameter).data[expert]
            norm = entering.double().square().sum(dim=0).sqrt().float()
            keep = two_of_four(weight.abs() * norm.unsqueeze(1))
            expected = weight.masked_fill(~keep, 0.0)
            assert torch.equal(getattr(after, parameter).data[expert], expected), parameter
    (record,) = report.stages
    assert isinstance(record, PruneRecord)
    routed = tuple(int(outer.any(dim=1).sum()) for outer, _ in rows)
    assert record.blocks[0].expert_tokens == routed
    assert sum(routed) == (1 if family == "llama4" else 2) * ids.numel()
    assert {entry.method for entry in record.layers} == {"wanda"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert all(check.passed for check in verify_checkpoint(tmp_path / "out"))


@pytest.mark.parametrize("family", TURNED_EXPERTS)
@pytest.mark.parametrize("method", ["sparsegpt", "best-2:4", "wanda++"])
def test_every_kind_of_method_keeps_two_of_four(family: str, method: str) -> None:
    stage: dict[str, Any] = {"stage": "prune", "method": method, "pattern": "2:4"}
    if method != "sparsegpt":
        stage["reconstruct"] = {"rounds": 1}
    model, report = compress_with_report(
        tiny_model(family, 1),
        {"stages": [stage | {"min_expert_tokens": 1}]},
        calibration=some_ids(),
    )
    layer = "feed_forward" if family == "llama4" else "mlp"
    experts: Any = model.get_submodule(f"model.layers.0.{layer}.experts")
    for stack in (experts.gate_up_proj, experts.down_proj):
        groups = (stack != 0).transpose(1, 2).reshape(-1, 4)
        assert (groups.sum(dim=1) == 2).all()
    (record,) = report.stages
    assert isinstance(record, PruneRecord)
    assert {entry.method for entry in record.layers} == {method}
