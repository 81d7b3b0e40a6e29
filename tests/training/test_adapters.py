"""Adapters: what they add to a matrix, and that nothing of them is left."""

import builtins
from typing import Any

import pytest
import torch
from families import model_from, tiny_model
from small_trainings import same_values, values_of
from torch import nn
from transformers import MambaConfig

from secateur.errors import SecateurError
from secateur.training.adapters import (
    Adapters,
    add_adapters,
    check_adapters,
    merge_adapters,
    require_peft,
)
from secateur.training.trained import linear_modules


def filled(adapted: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random A and B in every adapter, by the name of the matrix."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            with torch.no_grad():
                for item in (a, b):
                    item.copy_(torch.randn(item.shape, generator=generator))
            found[name.removeprefix("base_model.model.")] = (a.detach(), b.detach())
    return found


@pytest.mark.parametrize("alpha", [16.0, 5.0])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "phi3", "mixtral"])
def test_merged_weights_and_nothing_else(family: str, alpha: float) -> None:
    model = tiny_model(family)
    before, attributes = values_of(model), set(vars(model))
    classes = {name: type(module) for name, module in model.named_modules()}
    names = linear_modules(model, [1])
    adapted = add_adapters(model, Adapters(names, rank=3, alpha=alpha))
    trained = [item for item in adapted.parameters() if item.requires_grad]
    assert len(trained) == 2 * len(names)
    factors = filled(adapted)
    assert set(factors) == set(names)
    merge_adapters(adapted)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert set(vars(model)) == attributes
    after = values_of(model)
    assert list(after) == list(before)
    for name, value in after.items():
        if name.removesuffix(".weight") not in factors:
            assert torch.equal(value, before[name]), name
            continue
        a, b = factors[name.removesuffix(".weight")]
        change = alpha / 3 * (b.double() @ a.double())
        if family == "gpt2":
            change = change.T
        expected = before[name].double() + change
        # Three products are summed and one sum is rounded, in fp32.
        limit = (
            8 * torch.finfo(torch.float32).eps * float(expected.abs().max() + change.abs().max())
        )
        assert float((value.double() - expected).abs().max()) <= limit, name


def test_a_second_time(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model("llama")
    for _ in range(2):
        merge_adapters(add_adapters(model, Adapters(linear_modules(model, [0]))))
    assert not [w for w in recwarn if "second time" in str(w.message)]


def test_the_seed_decides_and_no_other_draw_is_moved() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(drawn))
        state = torch.random.get_rng_state()
        model = tiny_model("llama")
        adapted = add_adapters(model, Adapters(linear_modules(model, [0])), seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        values = values_of(adapted)
        drawn.append({name: item for name, item in values.items() if "lora_A" in name})
        assert drawn[-1]
        assert all(not item.any() for name, item in values.items() if "lora_B" in name)
    assert same_values(drawn[0], drawn[1])
    assert not same_values(drawn[0], drawn[2])


def test_pruned_matrices_are_refused() -> None:
    adapters = Adapters(("a.q", "a.k", "b.up"))
    check_adapters(adapters, ["other.weight", "a.q"])
    message = (
        r"method lora adds a dense product to each matrix, and 2 of them are pruned, such as a\.k: "
        r"merging would fill their zeros\. Train the kept weights instead, by gates, linears or all"
    )
    with pytest.raises(SecateurError, match=message):
        check_adapters(adapters, ["a.k.weight", "b.up.weight"])


def test_what_peft_refuses_leaves_the_model_as_it_was() -> None:
    model = model_from(
        MambaConfig(num_hidden_layers=2, vocab_size=128, hidden_size=32, state_size=4)
    )
    before, classes = values_of(model), [type(module) for module in model.modules()]
    with pytest.raises(
        SecateurError, match=r"method lora: .*'out_proj' is incompatible with Mamba"
    ):
        add_adapters(model, Adapters(linear_modules(model, [0, 1])))
    assert [type(module) for module in model.modules()] == classes
    assert same_values(values_of(model), before)


def test_adapters_elsewhere_are_refused() -> None:
    model = tiny_model("qwen3_moe")
    before, classes = values_of(model), [type(module) for module in model.modules()]
    names = linear_modules(model, [0])
    assert "model.layers.0.mlp.gate_proj" in names
    message = (
        r"leaves out model\.layers\.0\.mlp\.down_proj and .* beside model\.layers\.1\.mlp\.experts"
    )
    with pytest.raises(SecateurError, match=message):
        add_adapters(model, Adapters(names))
    assert [type(module) for module in model.modules()] == classes
    assert same_values(values_of(model), before)
    others = tuple(name for name in names if ".mlp." not in name)
    merge_adapters(add_adapters(model, Adapters(others)))


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "peft":
            raise ImportError("no peft here")
        return real(name, *args, **kwargs)

    assert require_peft().__name__ == "peft"
    monkeypatch.setattr(builtins, "__import__", absent)
    message = r"method lora needs peft, which is not installed: pip install 'secateur\[lora\]'"
    with pytest.raises(SecateurError, match=message):
        require_peft()
    with pytest.raises(SecateurError, match=message):
        add_adapters(tiny_model("llama"), Adapters(("model.layers.0.mlp.up_proj",)))
