"""Which matrices count as pruned, and that their zeros are kept."""

import pytest
import torch
from families import tiny_model
from torch import nn

from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.training.pruned_weights import PrunedWeights, local_values, pruned_parameters

NAME = "model.layers.0.mlp.up_proj.weight"  # [64, 32]


def prune(family: str, **options: object) -> nn.Module:
    stage = {"stage": "prune", "method": "magnitude", **options}
    model: nn.Module = compress(tiny_model(family), {"stages": [stage]})
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral", "qwen3_moe", "phi3"])
@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"sparsity": 0.3}])
def test_pruned_matrices_are_found(family: str, options: dict[str, object]) -> None:
    model = prune(family, **options)
    sites = {id(site.parameter) for site in take_inventory(model).all_sites}
    expected = {name for name, item in model.named_parameters() if id(item) in sites}
    found = pruned_parameters(model)
    assert (set(found), len(found)) == (expected, len(expected))
    assert pruned_parameters(tiny_model(family)) == ()


@pytest.mark.parametrize(
    ("zeros", "is_pruned"), [(0, False), (20, False), (21, True), (2047, True), (2048, False)]
)
def test_how_many_zeros_it_takes(zeros: int, is_pruned: bool) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter(NAME).view(-1)[:zeros] = 0.0
    assert pruned_parameters(model) == ((NAME,) if is_pruned else ())
    known = {NAME.removesuffix(".weight"), "model.layers.0.mlp.down_proj"}
    assert pruned_parameters(model, known) == ((NAME,) if zeros else ())


def test_zeros_elsewhere_are_not_looked_at() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
            model.get_parameter(name).view(-1)[:20] = 0.0
    assert pruned_parameters(model) == ()


def test_zeros_come_back_and_nothing_else_changes() -> None:
    model = prune("mixtral", sparsity=0.5)
    pruned = PrunedWeights(pruned_parameters(model))
    pruned.begin(model)
    pruned.check()
    before = {name: item.detach().clone() for name, item in model.named_parameters()}
    with torch.no_grad():
        for item in model.parameters():
            item.add_(1.0)
    name = "model.layers.0.mlp.experts.down_proj"
    zeros = int((before[name] == 0).sum())
    message = f"{name}: expected {zeros} pruned weights to stay zero in training, but {zeros} are"
    with pytest.raises(SecateurError, match=message):
        pruned.check()
    pruned.apply()
    pruned.check()
    for name, item in model.named_parameters():
        expected = before[name] + 1.0
        if name in pruned_parameters(model):
            expected = torch.where(before[name] == 0, 0.0, expected)
        assert torch.equal(item, expected), name


def test_names_of_wrappers_are_passed_over() -> None:
    model = prune("llama", sparsity=0.5)

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = inner

    pruned = PrunedWeights(pruned_parameters(model))
    pruned.begin(Wrapper(Wrapper(model)))
    with torch.no_grad():
        model.get_parameter(NAME).add_(1.0)
    pruned.apply()
    assert float((model.get_parameter(NAME) == 0).float().mean()) == 0.5


def test_a_parameter_that_is_not_there() -> None:
    pruned = PrunedWeights(["model.layers.9.mlp.up_proj.weight"])
    message = r"expected the pruned parameter model\.layers\.9\.mlp\.up_proj\.weight in the model"
    with pytest.raises(SecateurError, match=message):
        pruned.begin(tiny_model("llama"))


def test_local_values_are_a_view() -> None:
    parameter = nn.Parameter(torch.ones(3))
    local_values(parameter)[1] = 5.0
    assert parameter.tolist() == [1.0, 5.0, 1.0]
