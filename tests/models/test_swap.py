"""Linear layers replaced by compressed ones and back, in place."""

import copy

import pytest
import torch
from families import FAMILIES, OWN_LINEARS, tiny_model
from integrations.compact_models import (
    RANK,
    compressed,
    dense_sites,
    logits_of,
    make_low_rank,
    pruned,
)
from torch import nn

from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.models.swap import (
    compressed_modules,
    convert_sparse24,
    dense_weight,
    find_sparse24,
    linear_shape,
    pack_layers,
    pack_model,
    replace_module,
    to_dense,
    unpack_layers,
)
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.weight24 import Weight24Module

UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_conversion_and_back_is_exact(family: str, dtype: torch.dtype) -> None:
    model = pruned(family, dtype)
    before = copy.deepcopy(model)
    names = convert_sparse24(model)
    assert names == [site.name for site in dense_sites(before)]
    assert list(compressed_modules(model)) == names
    for site in dense_sites(before):
        layer = compressed_modules(model)[site.name]
        assert isinstance(layer, Sparse24Linear)
        assert not layer.is_packed
        assert (layer.out_features, layer.in_features) == site.shape
    packed = pack_layers(model)
    assert packed == (names if dtype.itemsize == 2 else [])
    assert to_dense(model) == names
    left, right = before.state_dict(), model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(logits_of(before), logits_of(model))


@pytest.mark.parametrize("family", [*FAMILIES, *OWN_LINEARS])
def test_layers_multiply_as_the_dense_ones_did(family: str) -> None:
    """Sums differ by their order alone: some hundred roundings deep, of logits around one."""
    model = pruned(family, torch.float32)
    expected = logits_of(model)
    convert_sparse24(model)
    assert compressed_modules(model)
    tolerance = 300 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert float((logits_of(model) - expected).abs().max()) < tolerance


def test_weights_that_fit_by_chance_or_are_all_zero_convert() -> None:
    model = tiny_model("llama").bfloat16()
    layer = model.get_submodule(UP)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[5, 4:6] = 2.0
        layer.weight[6, 7] = -0.0
        layer.weight[7, 7] = float("nan")
    assert find_sparse24(model) == [UP]
    dense = layer.weight.detach().clone()
    assert convert_sparse24(model) == [UP]
    back = compressed_modules(model)[UP].to_linear().weight
    assert torch.equal(back.nan_to_num(9.0), dense.nan_to_num(9.0))


def test_a_layer_that_is_named_twice_is_converted_once() -> None:
    model = pruned("llama")
    assert convert_sparse24(model, [UP, UP]) == [UP]


def test_three_of_four_is_not_24() -> None:
    model = pruned("llama")
    layer = model.get_submodule(UP)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[3, 8:11] = 1.0
    assert len(find_sparse24(model)) == 13
    assert UP not in find_sparse24(model)
    with pytest.raises(SecateurError, match=rf"{UP} \[64, 32\] is not 2:4: somewhere more than"):
        convert_sparse24(model, ["model.layers.1.mlp.up_proj", UP])
    assert not compressed_modules(model), "found before anything was changed"


@pytest.mark.parametrize("name", ["model.norm", "lm_head", "model.layers.0", "nowhere", ""])
def test_names_of_no_dense_linear(name: str) -> None:
    with pytest.raises(SecateurError, match="expected the name of a dense linear layer in a block"):
        convert_sparse24(pruned("llama"), [name])


def test_a_compressed_layer_does_not_convert_again() -> None:
    model = pruned("llama")
    assert len(convert_sparse24(model)) == 14
    assert convert_sparse24(model) == []
    with pytest.raises(SecateurError, match=f"expected the name of a dense .*, got '{UP}'"):
        convert_sparse24(model, [UP])


def test_subclasses_of_linear_stay() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = pruned("llama")
    replace_module(model, UP, Scaled(32, 64, bias=False))
    with torch.no_grad():
        next(model.get_submodule(UP).parameters()).zero_()
    assert UP not in find_sparse24(model)


def test_what_is_frozen_and_training_stays_so() -> None:
    model = pruned("llama").train()
    model.get_submodule(UP).requires_grad_(False)
    convert_sparse24(model)
    layers = compressed_modules(model)
    assert all(layer.training for layer in layers.values())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{UP}.weight"}


def test_pack_model_packs_all_or_those_named() -> None:
    model = pruned("llama")
    assert pack_model(model, [UP]) == [UP]
    assert len(pack_model(model)) == 13
    layers = compressed_modules(model).values()
    assert all(isinstance(layer, Weight24Module) and layer.is_packed for layer in layers)
    assert unpack_layers(model) == list(compressed_modules(model))
    assert not any(isinstance(layer, Weight24Module) and layer.is_packed for layer in layers)


def test_pack_model_refuses_what_it_cannot_do() -> None:
    with pytest.raises(SecateurError, match="found no linear layer of LlamaForCausalLM that is 2:"):
        pack_model(tiny_model("llama"))
    model = pruned("llama", torch.float32)
    message = "expected weights of dtype bfloat16 or float16 to pack, but model.layers.0.self_attn"
    with pytest.raises(SecateurError, match=message):
        pack_model(model)
    assert not compressed_modules(model)


def test_a_corrupt_layer_is_named() -> None:
    model = pruned("llama")
    convert_sparse24(model)
    layer = compressed_modules(model)[UP]
    assert isinstance(layer, Sparse24Linear)
    assert layer.indices is not None
    layer.indices[0, 0] = 0
    with pytest.raises(SecateurError, match=f"{UP}: the packed weight is corrupt"):
        pack_layers(model)


def test_replace_returns_what_was_there() -> None:
    model = tiny_model("llama")
    old = model.get_submodule(UP)
    new = LowRankLinear(32, 64, RANK, bias=False)
    assert replace_module(model, UP, new) is old
    assert model.get_submodule(UP) is new
    assert not new.training
    assert replace_module(model, UP, old) is new


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.7.mlp.up_proj", "LlamaForCausalLM has no layer model.layers.7.mlp.up_proj"),
        (f"{UP}.weight", f"LlamaForCausalLM has no layer {UP}.weight"),
        ("model.norm", "expected a linear layer at model.norm, found LlamaRMSNorm"),
        ("", "expected a linear layer at the root, found LlamaForCausalLM"),
        (
            "model.layers.0.mlp.down_proj",
            r"expected a layer \[32, 64\] for .*down_proj, got LowRankLinear of \(64, 32\)",
        ),
    ],
)
def test_replace_refuses(name: str, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        replace_module(tiny_model("llama"), name, LowRankLinear(32, 64, RANK))


def test_linear_shapes() -> None:
    gpt2 = tiny_model("gpt2")
    assert linear_shape(gpt2.get_submodule("transformer.h.0.attn.c_attn")) == (96, 32)
    assert linear_shape(nn.Linear(3, 5)) == (5, 3)
    assert linear_shape(Sparse24Linear(8, 5)) == (5, 8)
    assert linear_shape(nn.Embedding(4, 4)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_parts_become_their_sum(dtype: torch.dtype) -> None:
    model = compressed("llama", "sparse24_low_rank")
    unpack_layers(model)
    model.to(dtype)
    layer = compressed_modules(model)[UP]
    assert isinstance(layer, SparseLowRankLinear)
    sparse = dense_weight(layer).double()
    assert 0 < int((sparse != 0).sum()) <= 64 * 16
    expected = sparse + layer.up.detach().double() @ layer.down.detach().double()
    to_dense(model)
    found = dict(model.get_submodule(UP).named_parameters())["weight"]
    assert torch.equal(found, expected.to(dtype))


def test_factors_become_their_product() -> None:
    model = tiny_model("gpt2")
    site = dense_sites(model)[0]
    make_low_rank(model, site)
    layer = compressed_modules(model)[site.name]
    assert isinstance(layer, LowRankLinear)
    expected, bias = layer.factors().to_dense(), layer.bias
    assert to_dense(model) == [site.name]
    dense = model.get_submodule(site.name)
    assert type(dense) is type(site.module)
    assert torch.equal(dict(dense.named_parameters())["weight"], expected.T)
    assert dense.bias is bias


def test_only_compressed_layers_become_dense_by_name() -> None:
    model = tiny_model("llama")
    with pytest.raises(SecateurError, match=r"of which there are none, got 'model\.norm'"):
        to_dense(model, ["model.norm"])
    site = take_inventory(model).sites[0][0]
    replace_module(model, site.name, LowRankLinear(site.shape[1], site.shape[0], 16, False))
    with pytest.raises(SecateurError, match=f"such as {site.name}, got 'model.norm'"):
        to_dense(model, ["model.norm"])
    assert to_dense(model, [site.name]) == [site.name]


def test_layers_that_share_down_become_dense_together() -> None:
    model = tiny_model("llama")
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    leader: LowRankLinear | None = None
    for name in names:
        shape = linear_shape(model.get_submodule(name))
        assert shape is not None
        layer = LowRankLinear(shape[1], shape[0], RANK, False, shares_down_with=leader)
        replace_module(model, name, layer)
        leader = leader or layer
    message = f"expected to replace {names[0]} together with .*, but {names[2]} would stay"
    with pytest.raises(SecateurError, match=message):
        to_dense(model, names[:2])
    assert list(compressed_modules(model)) == names, "nothing was changed"
    assert to_dense(model, names[2:]) == names[2:]
    assert to_dense(model, names[:2]) == names[:2]


def test_a_conv1d_gets_a_bias_of_zeros_if_its_stand_in_had_none() -> None:
    model = tiny_model("gpt2")
    name = "transformer.h.0.mlp.c_fc"
    replace_module(model, name, LowRankLinear(32, 128, RANK, bias=False))
    to_dense(model)
    bias = dict(model.get_submodule(name).named_parameters())["bias"]
    assert torch.equal(bias, torch.zeros(128))


def test_a_fused_layer_stands_for_no_dense_one() -> None:
    model = pruned("phi3")
    convert_sparse24(model, ["model.layers.0.mlp.down_proj"])
    name = "model.layers.1.mlp.gate_up_proj"
    replace_module(model, name, Sparse24Linear(32, 128, False, activation="silu_and_mul"))
    with pytest.raises(SecateurError, match=f"{name} multiplies gate and up: no one dense layer"):
        to_dense(model)
    assert len(compressed_modules(model)) == 2, "nothing was changed"


# Inventories of models that hold compressed layers.


def test_compressed_layers_are_no_sites() -> None:
    model = compressed("llama", "mixed")
    unpack_layers(model)
    inventory = take_inventory(model)
    assert inventory.all_sites == []
    reasons = {entry.name: entry.reason for entry in inventory.unmatched}
    attention = "model.layers.0.self_attn"
    assert reasons[f"{attention}.q_proj.down"] == "factors of a low-rank layer"
    assert reasons[f"{attention}.k_proj.up"] == "factors of a low-rank layer"
    assert reasons[f"{attention}.k_proj.weight"] == "kept values of a 2:4 layer"
    assert reasons["model.norm.weight"] == "vector (norm or bias)"
    assert reasons["lm_head.weight"] == "outside the blocks (head or projection)"


def test_packed_layers_hold_no_parameters() -> None:
    inventory = take_inventory(compressed("llama"))
    assert {entry.reason for entry in inventory.unmatched} == {
        "embedding",
        "vector (norm or bias)",
        "outside the blocks (head or projection)",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_an_inventory_once_compressed(family: str) -> None:
    dense = {site.name for site in take_inventory(pruned(family)).all_sites}
    model = compressed(family)
    left = {site.name for site in take_inventory(model).all_sites}
    assert left == dense - set(compressed_modules(model))


def test_a_model_that_is_compressed_in_part_has_the_rest() -> None:
    model = pruned("llama")
    convert_sparse24(model, [UP])
    names = [site.name for site in take_inventory(model).all_sites]
    assert len(names) == 13
    assert UP not in names
