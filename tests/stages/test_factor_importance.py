"""Sums of gradients that are too large for a GPU all at once, and matrices few tokens reach."""

import copy
from typing import Any

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from secateur import compress
from secateur.calibration.tokens import CalibrationTokens
from secateur.models.inventory import take_inventory
from secateur.stages import factor_importance
from secateur.stages.factor_importance import measure_importance

TOKENS = torch.randint(3, 128, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("largest_together", "passes"), [(4, 2), (1, 7), (0, 14)])
def test_parts_of_the_sums_give_what_all_together_give(
    largest_together: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = tiny_model("llama"), CalibrationTokens(tuple(TOKENS), "test")
    sites = take_inventory(model).all_sites
    backward, calls = factor_importance._backward, []

    def counted(of: nn.Module, sample: Tensor) -> None:
        calls.append(sample)
        backward(of, sample)

    monkeypatch.setattr(factor_importance, "_backward", counted)
    room = largest_together * max(4 * site.shape[0] ** 2 for site in sites)
    monkeypatch.setattr(factor_importance, "_MOST_BYTES_ON_GPU", room)
    together = measure_importance(model, sites, tokens, with_directions=True)
    # In host memory nothing is gained by parts.
    assert len(calls) == len(TOKENS)
    calls.clear()
    monkeypatch.setattr(factor_importance, "_is_on_host", lambda _: False)
    in_parts = measure_importance(model, sites, tokens, with_directions=True)
    assert len(calls) == passes * len(TOKENS)
    assert together is not None
    assert in_parts is not None
    assert list(in_parts) == [site.name for site in sites]
    for name, found in in_parts.items():
        assert found.whole == together[name].whole
        assert found.gradients is not None
        expected = together[name].gradients
        assert expected is not None
        assert torch.equal(found.gradients, expected)
    calls.clear()
    # Without directions there is nothing that would have to fit.
    measure_importance(model, sites, tokens)
    assert len(calls) == len(TOKENS)


class TwoExperts(nn.Module):
    """Two copies of one MLP; every eighth token goes to the first, the others to the second."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList([copy.deepcopy(mlp), copy.deepcopy(mlp)])

    def forward(self, hidden: Tensor) -> Tensor:
        output = torch.empty_like(hidden)
        first = torch.arange(hidden.shape[1]) % 8 == 0
        output[:, first] = self.experts[0](hidden[:, first])
        output[:, ~first] = self.experts[1](hidden[:, ~first])
        return output


def test_an_expert_counts_by_the_tokens_that_reach_it() -> None:
    dense = tiny_model("llama")
    model: Any = copy.deepcopy(dense)
    for block in model.model.layers:
        block.mlp = TwoExperts(block.mlp)
    ids = torch.randint(3, 128, (16, 64), generator=torch.Generator().manual_seed(2))
    tokens = CalibrationTokens(tuple(ids), "test")
    one, parts = (
        measure_importance(each, take_inventory(each).all_sites, tokens) for each in (dense, model)
    )
    assert one is not None
    assert parts is not None
    for name in ("gate_proj", "up_proj", "down_proj"):
        few, many = (parts[f"model.layers.1.mlp.experts.{n}.{name}"].whole for n in (0, 1))
        # Up to how much energies of tokens of the two parts differ.
        assert few + many == pytest.approx(one[f"model.layers.1.mlp.{name}"].whole, rel=0.03)
        assert few / (few + many) == pytest.approx(1 / 8, rel=0.3)
    name = "model.layers.1.self_attn.q_proj"
    assert parts[name].whole == pytest.approx(one[name].whole, rel=1e-5)


def test_no_more_samples_are_run_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model("llama"), CalibrationTokens(tuple(TOKENS), "test")
    sites = take_inventory(model).all_sites
    calls: list[Tensor] = []
    backward = factor_importance._backward

    def counted(of: nn.Module, sample: Tensor) -> None:
        calls.append(sample)
        backward(of, sample)

    monkeypatch.setattr(factor_importance, "_backward", counted)
    measure_importance(model, sites, tokens, most_samples=2)
    assert torch.equal(torch.stack(calls), TOKENS[:2])
    calls.clear()
    stage = {"stage": "factor", "rank": 8, "importance": "directions", "importance_samples": 1}
    compress(model, {"stages": [stage]}, calibration=TOKENS)
    assert torch.equal(torch.stack(calls), TOKENS[:1])
