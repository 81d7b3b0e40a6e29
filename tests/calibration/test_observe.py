from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.calibration.observe import observed
from secateur.calibration.statistics import InputStatistics
from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.inventory import take_inventory
from secateur.models.sites import WeightSite


def some_ids(rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=generator)


def seen_by(
    model: PreTrainedModel, sites: Sequence[WeightSite], *batches: Tensor
) -> dict[str, list[Tensor]]:
    """What every site was given, by its name."""
    seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    sinks = {name: inputs.append for name, inputs in seen.items()}
    with observed(sites, sinks), torch.no_grad():
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    return seen


def kept_inputs(module: nn.Module, model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The first argument that `module` is called with, noted by a plain hook."""
    kept: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    hook.remove()
    (inputs,) = kept
    return inputs


def routed_in(family: str, part: str) -> tuple[Any, Tensor, dict[str, list[Tensor]]]:
    """A block's mixture of experts, the tokens [T, 32] that it gets, and what every site gets."""
    model, ids = tiny_model(family, 1), some_ids(2, 15)
    seen = seen_by(model, take_inventory(model).sites[0], ids)
    moe = model.get_submodule(f"model.layers.0.{part}")
    return moe, kept_inputs(moe, model, ids).reshape(-1, 32), seen


def sorted_rows(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort()]


def expert_implementations(model: PreTrainedModel) -> list[str | None]:
    configs = [getattr(module, "config", None) for module in model.modules()]
    return [config._experts_implementation for config in configs if config is not None]


@pytest.fixture(scope="module")
def mixtral() -> PreTrainedModel:
    return tiny_model("mixtral")


def test_experts_see_the_tokens_that_are_routed_to_them(mixtral: PreTrainedModel) -> None:
    sites = take_inventory(mixtral).sites[1]
    ids = some_ids(3, 17)
    seen = seen_by(mixtral, sites, ids)
    moe: Any = mixtral.get_submodule("model.layers.1.mlp")
    tokens = kept_inputs(moe, mixtral, ids).reshape(-1, 32)
    chosen = (tokens @ moe.gate.weight.T).topk(2, dim=1).indices
    for expert in range(8):
        routed = tokens[(chosen == expert).any(dim=1)]
        name = f"model.layers.1.mlp.experts.{expert}"
        up_inputs = torch.cat(seen[f"{name}.gate_up_proj"])
        assert torch.equal(sorted_rows(up_inputs), sorted_rows(routed))
        gate, up = (routed @ moe.experts.gate_up_proj[expert].T).chunk(2, dim=1)
        expected = nn.functional.silu(gate) * up
        down_inputs = torch.cat(seen[f"{name}.down_proj"])
        torch.testing.assert_close(sorted_rows(down_inputs), sorted_rows(expected))
    total = sum(len(t) for name in seen if "gate_up_proj" in name for t in seen[name])
    assert total == 2 * ids.numel()


def test_transposed_experts_are_seen() -> None:
    moe, tokens, seen = routed_in("gpt_oss", "mlp")
    logits = nn.functional.linear(tokens, moe.router.weight, moe.router.bias)
    chosen = logits.topk(2, dim=1).indices
    for expert in range(4):
        routed = tokens[(chosen == expert).any(dim=1)]
        name = f"model.layers.0.mlp.experts.{expert}"
        assert torch.equal(
            sorted_rows(torch.cat(seen[f"{name}.gate_up_proj"])), sorted_rows(routed)
        )
        assert torch.cat(seen[f"{name}.down_proj"]).shape == (len(routed), 64)


def test_experts_that_are_multiplied_at_once_are_seen_one_by_one() -> None:
    """By tokens that are routed to them, scaled as Llama 4 scales them."""
    moe, tokens, seen = routed_in("llama4", "feed_forward")
    best, chosen = (tokens @ moe.router.weight.T).max(dim=1)
    counts = []
    for expert in range(4):
        routed = tokens[chosen == expert] * torch.sigmoid(best[chosen == expert]).unsqueeze(1)
        name = f"model.layers.0.feed_forward.experts.{expert}"
        up_inputs = torch.cat(seen[f"{name}.gate_up_proj"])
        torch.testing.assert_close(up_inputs, routed)
        gate, up = (up_inputs @ moe.experts.gate_up_proj[expert]).chunk(2, dim=1)
        expected = nn.functional.silu(gate) * up
        torch.testing.assert_close(torch.cat(seen[f"{name}.down_proj"]), expected)
        counts.append(len(routed))
    assert all(counts)
    assert sum(counts) == len(tokens)


class FusedExperts(nn.Module):
    """Three matrices [N, K] = [5, 4] in one parameter, stored as [K, N]."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(3, 4, 5))
        self.is_transposed = True
        self._multiply = multiply

    def forward(self, inputs: Tensor) -> Tensor:
        first = self._multiply(inputs[:2], self.stack[0])
        last = self._multiply(inputs[2:], self.stack[2])
        return torch.cat([first, last, last @ last.T @ last])


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x, w: x @ w,
        lambda x, w: x.matmul(w),
        lambda x, w: x.mm(w),
        lambda x, w: torch.matmul(x, w),
        lambda x, w: torch.mm(x, w),
        lambda x, w: nn.functional.linear(x, w.T),
    ],
)
def test_every_way_to_multiply_is_seen(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = FusedExperts(multiply)
    sites = [
        WeightSite(
            f"experts.{expert}.stack", module, "stack", stored_transposed=True, expert=expert
        )
        for expert in range(3)
    ]
    seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    inputs = torch.randn(5, 4)
    with observed(sites, {name: tensors.append for name, tensors in seen.items()}):
        module(inputs)
        # No product of matrices: nothing is an input.
        torch.mul(inputs[:4, :1], module.stack[1])
    first, middle, last = seen.values()
    assert middle == []
    assert [len(first), len(last)] == [1, 1]
    assert torch.equal(first[0], inputs[:2])
    assert torch.equal(last[0], inputs[2:])


@pytest.mark.parametrize(
    "multiply", [torch.bmm, torch.matmul, Tensor.bmm, Tensor.matmul, lambda x, w: x @ w]
)
def test_every_way_to_multiply_all_at_once_is_seen(
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> None:
    module = FusedExperts(multiply)
    inputs = torch.randn(3, 6, 4)
    inputs[0, 1:] = inputs[1] = 0.0
    inputs[2, 4, 1:] = 0.0
    seen: dict[str, list[Tensor]] = {f"experts.{expert}.stack": [] for expert in range(3)}
    sites = [
        WeightSite(name, module, "stack", stored_transposed=True, expert=expert)
        for expert, name in enumerate(seen)
    ]
    with observed(sites, {name: tensors.append for name, tensors in seen.items()}):
        multiply(inputs, module.stack)
    (first,), middle, (last,) = seen.values()
    assert torch.equal(first, inputs[0, :1])
    assert middle == []
    assert torch.equal(last, inputs[2])


@pytest.mark.parametrize("inputs", [torch.randn(6, 4), torch.randn(1, 6, 4)])
def test_tokens_that_all_experts_share_are_seen_by_each(inputs: Tensor) -> None:
    module = FusedExperts(torch.matmul)
    seen: dict[str, list[Tensor]] = {f"experts.{expert}.stack": [] for expert in range(3)}
    sites = [
        WeightSite(name, module, "stack", stored_transposed=True, expert=expert)
        for expert, name in enumerate(seen)
    ]
    with observed(sites, {name: tensors.append for name, tensors in seen.items()}):
        torch.matmul(inputs, module.stack)
    for (rows,) in seen.values():
        assert torch.equal(rows, inputs.reshape(6, 4))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt2", "llama", "opt", "gptj"])
def test_every_site_is_seen_with_as_many_columns_as_it_has(family: str) -> None:
    model = tiny_model(family)
    # Enough tokens for each of eight experts to be chosen.
    ids = some_ids(4, 32)
    for sites in take_inventory(model).sites:
        seen = seen_by(model, sites, ids)
        for site in sites:
            assert seen[site.name], site.name
            assert {inputs.shape[-1] for inputs in seen[site.name]} == {site.shape[1]}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.self_attn.q_proj"),
        ("llama", "model.layers.1.mlp.down_proj"),
        ("gpt2", "transformer.h.1.mlp.c_proj"),
    ],
)
def test_modules_are_seen_with_their_very_inputs(family: str, name: str) -> None:
    model = tiny_model(family)
    ids = some_ids(2, 9)
    (inputs,) = seen_by(model, take_inventory(model).sites[1], ids)[name]
    assert torch.equal(inputs, kept_inputs(model.get_submodule(name), model, ids))


def test_only_sites_with_a_sink_are_watched(mixtral: PreTrainedModel) -> None:
    sites = take_inventory(mixtral).sites[0]
    wanted: dict[str, list[Tensor]] = {
        sites[0].name: [],
        "model.layers.0.mlp.experts.5.down_proj": [],
    }
    sinks = {name: inputs.append for name, inputs in wanted.items()}
    with observed(sites, sinks), torch.no_grad():
        for site in sites[1:4]:
            assert not site.module._forward_pre_hooks
        mixtral(input_ids=some_ids(4, 32), use_cache=False)
    assert [len(inputs) for inputs in wanted.values()] == [1, 1]
    assert wanted["model.layers.0.mlp.experts.5.down_proj"][0].shape[1] == 64


def test_other_blocks_are_not_watched(mixtral: PreTrainedModel) -> None:
    sites = take_inventory(mixtral).sites[0]
    seen = seen_by(mixtral, sites, some_ids(2, 9))
    assert {len(seen[site.name]) for site in sites if site.expert is None} == {1}
    assert all(len(inputs) <= 1 for inputs in seen.values())


def test_watching_changes_no_output(mixtral: PreTrainedModel) -> None:
    ids = some_ids(2, 11)
    with torch.no_grad():
        before = mixtral(input_ids=ids, use_cache=False).logits
        with observed(take_inventory(mixtral).sites[0], {}):
            assert torch.equal(mixtral(input_ids=ids, use_cache=False).logits, before)
        sites = take_inventory(mixtral).sites[1]
        with observed(sites, {site.name: lambda _: None for site in sites}):
            watched = mixtral(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(watched, before)
        assert torch.equal(mixtral(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(implementation: str, fails: bool) -> None:
    model = tiny_model("mixtral")
    model.set_experts_implementation(implementation)
    before = expert_implementations(model)
    assert set(before) == {implementation}
    sites = take_inventory(model).sites[0]
    calls: list[Tensor] = []

    def sink(inputs: Tensor) -> None:
        calls.append(inputs)
        if fails:
            raise KeyboardInterrupt

    try:
        with observed(sites, {site.name: sink for site in sites}), torch.no_grad():
            assert set(expert_implementations(model)) == {"eager"}
            model(input_ids=some_ids(1, 9), use_cache=False)
    except KeyboardInterrupt:
        assert fails
    assert calls
    assert expert_implementations(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    calls.clear()
    with torch.no_grad():
        model(input_ids=some_ids(1, 9), use_cache=False)
    assert not calls


def test_models_without_fused_experts_keep_their_configuration() -> None:
    model = tiny_model("llama")
    before = expert_implementations(model)
    sites = take_inventory(model).sites[0]
    with observed(sites, {site.name: lambda _: None for site in sites}):
        assert expert_implementations(model) == before


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_reach_the_statistics(side: str) -> None:
    model = tiny_model("llama")
    sites = take_inventory(model).sites[0]
    rows = [some_ids(1, length)[0] for length in (11, 7, 4)]
    ids = torch.zeros(3, 11, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(11 - len(row), None) if side == "left" else slice(len(row))
        ids[index, place], mask[index, place] = row, 1

    def statistics_of(batches: Sequence[Tensor]) -> dict[str, InputStatistics]:
        statistics = {
            site.name: InputStatistics(
                site.shape[1], with_hessian=True, num_batches=3, device=torch.device("cpu")
            )
            for site in sites
        }
        with observed(sites, {name: s.add for name, s in statistics.items()}), torch.no_grad():
            for batch in batches:
                model(input_ids=batch, use_cache=False)
        return statistics

    cleaned = statistics_of(tokens_from_tensor(ids, mask).batches(tokens_per_batch=1))
    plain = statistics_of([row[None] for row in rows])
    naive = statistics_of([ids])
    for name, expected in plain.items():
        assert cleaned[name].num_tokens == expected.num_tokens == 22
        assert torch.equal(cleaned[name].hessian(3), expected.hessian(3))
        assert naive[name].num_tokens == 33
