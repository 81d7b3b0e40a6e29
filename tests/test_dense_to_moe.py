"""The example that turns dense MLPs into mixtures of experts and tunes them."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from example_scripts import load_example
from families import VOCAB_SIZE, tiny_model
from torch import Tensor, nn

from secateur.calibration.tokens import tokens_from_tensor
from secateur.errors import SecateurError
from secateur.reconstruct import ReconstructionSettings

script = load_example("dense_to_moe")


def random_firing(tokens: int, neurons: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, neurons, generator=generator) < 0.2


def mlp_of(model: Any) -> nn.Module:
    mlp: nn.Module = model.model.layers[0].mlp
    return mlp


def grouped(mlp: nn.Module, shape: Any) -> Any:
    hidden = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).double()
    return script.group_neurons(script.firing_neurons(mlp, hidden), shape)


@pytest.mark.parametrize("shape", [(8, 2, 3), (4, 1, 1), (8, 6, 2)])
def test_every_neuron_is_in_one_group(shape: tuple[int, int, int]) -> None:
    grouping = script.group_neurons(random_firing(50, 64), script.Shape(*shape))
    everything = torch.cat([grouping.shared, grouping.routed.flatten()])
    assert sorted(everything.tolist()) == list(range(64))
    assert grouping.routed.shape == (shape[0] - shape[1], 64 // shape[0])
    for members, typical in zip(grouping.routed, grouping.representatives, strict=True):
        assert typical in members


def test_neurons_that_fire_together_come_together() -> None:
    # Four kinds of tokens: neurons 0 to 3 fire for all, the others for one kind each.
    kind = torch.arange(40) % 3
    firing = torch.zeros(40, 16, dtype=torch.bool)
    firing[:, :4] = True
    planted = [[4, 7, 10, 13], [5, 8, 11, 14], [6, 9, 12, 15]]
    for number, members in enumerate(planted):
        firing[:, members] = (kind == number)[:, None]
    # Seeds of different kinds fire most, as CMoE takes them by rate.
    firing[3, 4] = firing[4, 5] = firing[5, 6] = True
    firing[[10, 11, 12], [4, 5, 6]] = True
    grouping = script.group_neurons(firing, script.Shape(4, 1, 1))
    assert grouping.shared.tolist() == [0, 1, 2, 3]
    assert sorted(sorted(members.tolist()) for members in grouping.routed) == planted


def test_firing_neurons_are_the_largest_of_each_token() -> None:
    mlp = mlp_of(tiny_model("llama")).double()
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    firing = script.firing_neurons(mlp, hidden)
    for token, marks in zip(hidden, firing, strict=True):
        inner = []
        for gate, up in zip(mlp.gate_proj.weight, mlp.up_proj.weight, strict=True):
            g, u = (float((token @ row / token.norm() / row.norm()).detach()) for row in (gate, up))
            inner.append(abs(g / (1 + torch.tensor(-g).exp().item()) * u))
        largest = sorted(range(64), key=lambda place: -inner[place])[:10]
        assert marks.nonzero().flatten().tolist() == sorted(largest)


def test_with_all_experts_active_it_is_the_dense_mlp() -> None:
    mlp = mlp_of(tiny_model("llama")).double()
    routed = script.RoutedMlp(mlp, grouped(mlp, script.Shape(8, 2, 6)), 6)
    hidden = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(routed(hidden), mlp(hidden), rtol=1e-9, atol=1e-9)


def test_a_token_passes_its_experts_alone() -> None:
    mlp = mlp_of(tiny_model("llama")).double()
    grouping = grouped(mlp, script.Shape(8, 2, 2))
    routed = script.RoutedMlp(mlp, grouping, 2)
    with torch.no_grad():
        routed.router_weight.copy_(torch.arange(6, dtype=torch.float64) / 3)
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(3)).double()
    inner = torch.nn.functional.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden)
    unit = [
        torch.nn.functional.normalize(linear.weight[grouping.representatives], dim=-1)
        for linear in (mlp.gate_proj, mlp.up_proj)
    ]
    score = (torch.nn.functional.silu(hidden @ unit[0].T) * (hidden @ unit[1].T)).abs()
    share = score.softmax(dim=-1)
    for number, output in enumerate(routed(hidden)):
        counts = torch.zeros(64, dtype=torch.float64)
        counts[grouping.shared] = 1.0
        for expert in score[number].topk(2).indices.tolist():
            counts[grouping.routed[expert]] = 1.0 + expert / 3 * share[number, expert].detach()
        expected = mlp.down_proj(inner[number] * counts)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


def test_tuning_lowers_the_error_of_every_block() -> None:
    model = tiny_model("llama")
    dense = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB_SIZE, (16, 24), generator=generator)
    settings = ReconstructionSettings(rounds=20)
    shape = script.Shape(8, 2, 2)
    errors = list(script.convert(model, tokens_from_tensor(ids), shape, settings))
    assert len(errors) == 2
    assert all(0.0 < error.tuned < 0.9 * error.converted for error in errors), errors
    assert all(isinstance(layer.mlp, script.RoutedMlp) for layer in model.model.layers)
    plain = list(script.convert(dense, tokens_from_tensor(ids), shape, None))
    assert plain[0].tuned == plain[0].converted == errors[0].converted
    assert model(ids[:2]).logits.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SecateurError, match=r"at least one shared expert .* got 8 experts, 0 "):
        script.Shape(8, 0, 3)
    with pytest.raises(SecateurError, match="num_active of at least 1 and at most the others"):
        script.Shape(8, 4, 5)
    with pytest.raises(SecateurError, match="number of neurons that 5 experts divide, got 64"):
        script.Shape(5, 1, 1).expert_size(64)
    ids = tokens_from_tensor(torch.arange(3, 19).view(2, 8))
    for family, fault in (("gpt2", "an MLP with gate_proj, up_proj"), ("opt", "with an `mlp`")):
        with pytest.raises(SecateurError, match=fault):
            list(script.convert(tiny_model(family), ids, script.Shape(), None))
