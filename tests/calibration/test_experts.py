from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.calibration.experts import ExpertTokens, observed_experts
from secateur.calibration.statistics import InputStatistics
from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.models.sites import WeightSite

ROUNDOFF = 2.0**-24


FUSED = ["mixtral", "qwen3_moe_listed", "gpt_oss", "llama4"]


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20, bias=False)
        self.down = nn.Linear(20, 12, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        inner: Tensor = self.down(torch.tanh(self.up(rows)))
        return inner


class ListedExperts(nn.Module):
    """Each token goes to the one expert that the router likes best."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(12, count, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(count))

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, 12)
        chosen = self.gate(rows).argmax(dim=1)
        output = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            (places,) = torch.where(chosen == number)
            if len(places):
                output[places] = expert(rows[places])
        return output.view_as(hidden)


def listed_sites(layer: ListedExperts) -> list[WeightSite]:
    return [
        WeightSite(f"blocks.0.experts.{number}.{name}", module, "weight", stored_transposed=False)
        for number, expert in enumerate(layer.experts)
        for name, module in expert.named_children()
    ]


def some_ids(rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=generator)


def new_statistics(sites: Sequence[WeightSite]) -> dict[str, InputStatistics]:
    return {
        site.name: InputStatistics(
            site.shape[1], with_hessian=True, num_batches=1, device=torch.device("cpu")
        )
        for site in sites
    }


def assert_of_rows(statistics: InputStatistics, rows: Tensor) -> None:
    """The Hessian is that of these rows, up to roundings of their products and sums."""
    assert statistics.num_tokens == len(rows)
    wide = rows.double()
    error = (statistics.hessian(2).double() - wide.T @ wide).abs()
    # The rows themselves are computed with roundings when they are what an expert made.
    bound = (len(rows) + 200) * ROUNDOFF * (wide.abs().T @ wide.abs()) + 1e-6
    assert (error <= bound).all()


def layer_inputs(model: PreTrainedModel, ids: Tensor) -> tuple[nn.Module, Tensor]:
    """The layer of experts in block 0, and the tokens [T, 32] that reach it."""
    block: Any = model.get_submodule("model.layers.0")
    layer: nn.Module = block.feed_forward if hasattr(block, "feed_forward") else block.mlp
    kept: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    hook.remove()
    return layer, kept[0].reshape(-1, 32)


def inner_rows(family: str, experts: Any, expert: int, tokens: Tensor) -> Tensor:
    """What reaches an expert's `down_proj`, written anew."""
    if family == "gpt_oss":
        both = tokens @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    matrix = experts.gate_up_proj[expert]
    gate, up = (tokens @ (matrix if family == "llama4" else matrix.T)).chunk(2, dim=1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("family", FUSED)
def test_every_fused_expert_is_given_every_token(family: str) -> None:
    model = tiny_model(family, 1)
    ids = some_ids(2, 9)
    layer, tokens = layer_inputs(model, ids)
    experts: Any = layer.experts
    sites = take_inventory(model).sites[0]
    statistics, routed = new_statistics(sites), ExpertTokens(sites)
    sinks = {name: seen.add for name, seen in statistics.items()}
    block = model.get_submodule("model.layers.0")
    with torch.no_grad():
        with observed_experts(block, sites, sinks, routed, all_experts=True):
            model(input_ids=ids, use_cache=False)
        for site in sites:
            if site.expert is None:
                assert statistics[site.name].num_tokens == ids.numel()
            elif site.parameter_name == "gate_up_proj":
                assert_of_rows(statistics[site.name], tokens)
            else:
                rows = inner_rows(family, experts, site.expert, tokens)
                assert_of_rows(statistics[site.name], rows)
    assert len(routed.counts) == len(experts.down_proj)
    assert sum(routed.counts) == (1 if family == "llama4" else 2) * ids.numel()


@pytest.mark.parametrize("family", FUSED)
def test_counts_and_outputs_are_the_routers_with_and_without(family: str) -> None:
    model = tiny_model(family, 1)
    ids = some_ids(2, 9)
    sites = take_inventory(model).sites[0]
    block = model.get_submodule("model.layers.0")
    outputs, counts = [], []
    for everything in (False, True):
        statistics, routed = new_statistics(sites), ExpertTokens(sites)
        sinks = {name: seen.add for name, seen in statistics.items()}
        with torch.no_grad(), observed_experts(block, sites, sinks, routed, all_experts=everything):
            outputs.append(model(input_ids=ids, use_cache=False).logits)
        counts.append(routed.counts)
        if not everything:
            seen = [s for s in sites if s.parameter_name == "gate_up_proj"]
            assert tuple(statistics[site.name].num_tokens for site in seen) == routed.counts
    assert torch.equal(outputs[0], outputs[1])
    assert counts[0] == counts[1]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_every_listed_expert_is_given_every_token() -> None:
    torch.manual_seed(0)
    layer, hidden = ListedExperts(), torch.randn(2, 7, 12)
    sites = listed_sites(layer)
    statistics, routed = new_statistics(sites), ExpertTokens(sites)
    sinks = {name: seen.add for name, seen in statistics.items()}
    with torch.no_grad():
        plain = layer(hidden)
        rows = hidden.reshape(-1, 12)
        chosen = layer.gate(rows).argmax(dim=1)
        with observed_experts(layer, sites, sinks, routed, all_experts=True):
            assert torch.equal(layer(hidden), plain)
        for site in sites:
            _, _, _, number, name = site.name.split(".")
            expert: Any = layer.experts[int(number)]
            wanted = rows if name == "up" else torch.tanh(rows @ expert.up.weight.T)
            assert_of_rows(statistics[site.name], wanted)
    assert routed.counts == tuple(int((chosen == number).sum()) for number in range(3))


def test_only_sites_with_a_sink_are_summed_and_all_experts_counted() -> None:
    torch.manual_seed(0)
    layer = ListedExperts()
    sites = listed_sites(layer)
    wanted = new_statistics(sites[3:4])
    routed = ExpertTokens(sites)
    sinks = {name: seen.add for name, seen in wanted.items()}
    with torch.no_grad(), observed_experts(layer, sites, sinks, routed):
        layer(torch.randn(2, 7, 12))
    (seen,) = wanted.values()
    assert sum(routed.counts) == 14
    assert seen.num_tokens == routed.counts[1]


def test_blocks_without_experts_count_nothing() -> None:
    model = tiny_model("llama", 1)
    assert ExpertTokens(take_inventory(model).sites[0]).counts == ()


class Weighted(Expert):
    def forward(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            raise TypeError("missing weights")
        return super().forward(rows) * weights


def test_experts_that_need_more_than_tokens_are_refused() -> None:
    layer = ListedExperts(1)
    layer.experts = nn.ModuleList([Weighted()])
    sites = listed_sites(layer)
    message = "expected Weighted to be called with hidden states alone: missing weights"
    with (
        observed_experts(layer, sites, {}, ExpertTokens(sites), all_experts=True),
        pytest.raises(SecateurError, match=message),
    ):
        layer(torch.randn(1, 3, 12))


class OtherFused(nn.Module):
    is_transposed = False

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(2, 5, 4))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.stack[0].T


def test_fused_experts_that_are_called_otherwise_are_refused() -> None:
    module = OtherFused()
    sites = [
        WeightSite(f"experts.{e}.stack", module, "stack", stored_transposed=False, expert=e)
        for e in range(2)
    ]
    message = r"expected OtherFused to be called with hidden states, .* got \['Tensor'\]"
    with (
        observed_experts(module, sites, {}, ExpertTokens(sites), all_experts=True),
        pytest.raises(SecateurError, match=message),
    ):
        module(torch.randn(3, 4))
