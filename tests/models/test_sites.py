from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, TURNED_EXPERTS, VOCAB_SIZE, model_from, tiny_model
from torch import Tensor, nn
from transformers import (
    HunYuanMoEV1Config,
    Qwen2MoeConfig,
    RwkvConfig,
)

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks, text_config
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.sites import WeightSite, find_sites

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

LLAMA_SITES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}


def shapes_of(inventory: Inventory, block: int) -> dict[str, tuple[int, int]]:
    prefix = f"{inventory.blocks.block_name(block)}."
    return {site.name.removeprefix(prefix): site.shape for site in inventory.sites[block]}


def reasons_of(inventory: Inventory) -> dict[str, str]:
    return {entry.name: entry.reason for entry in inventory.unmatched}


def stack(num_blocks: int, block: nn.Module | None = None) -> nn.ModuleList:
    return nn.ModuleList(block or nn.Linear(4, 4) for _ in range(num_blocks))


def modules(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def configured(model: nn.Module, num_hidden_layers: int) -> nn.Module:
    vars(model)["config"] = SimpleNamespace(num_hidden_layers=num_hidden_layers)
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_sites_of_llama_and_its_like(family: str) -> None:
    inventory = take_inventory(tiny_model(family))
    assert (inventory.blocks.name, len(inventory.blocks)) == ("model.layers", 2)
    for block in (0, 1):
        assert shapes_of(inventory, block) == LLAMA_SITES
    assert {site.class_name for site in inventory.all_sites} == {"Linear"}
    assert not any(site.is_expert for site in inventory.all_sites)


def test_sites_of_gpt2_are_given_as_rows_of_outputs() -> None:
    inventory = take_inventory(tiny_model("gpt2"))
    assert inventory.blocks.name == "transformer.h"
    expected = {
        "attn.c_attn": (96, 32),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (128, 32),
        "mlp.c_proj": (32, 128),
    }
    assert shapes_of(inventory, 0) == shapes_of(inventory, 1) == expected
    assert {site.class_name for site in inventory.all_sites} == {"Conv1D"}
    assert all(site.stored_transposed for site in inventory.all_sites)


def test_sites_of_mixtral_are_one_an_expert() -> None:
    inventory = take_inventory(tiny_model("mixtral"))
    shapes = shapes_of(inventory, 1)
    for expert in range(8):
        assert shapes.pop(f"mlp.experts.{expert}.gate_up_proj") == (128, 32)
        assert shapes.pop(f"mlp.experts.{expert}.down_proj") == (32, 64)
    assert list(shapes) == [name for name in LLAMA_SITES if "attn" in name]
    for site in inventory.all_sites:
        assert site.is_expert == ("experts" in site.name)
        assert site.class_name == ("MixtralExperts" if site.is_expert else "Linear")


def test_dense_and_expert_blocks_of_one_model() -> None:
    inventory = take_inventory(tiny_model("qwen3_moe_listed"))
    assert "mlp.experts.7.down_proj" in shapes_of(inventory, 0)
    assert shapes_of(inventory, 1) == LLAMA_SITES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_parameter_is_a_site_or_has_a_reason(family: str) -> None:
    model = tiny_model(family)
    inventory = take_inventory(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matched = {names[id(site.parameter)] for site in inventory.all_sites}
    reasons = reasons_of(inventory)
    assert matched.isdisjoint(reasons)
    assert matched | set(reasons) == set(names.values())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for entry in inventory.unmatched:
        assert entry.shape == shapes[entry.name]
        is_vector = len(entry.shape) == 1
        assert (entry.reason == "vector (norm or bias)") == is_vector
    assert len({site.name for site in inventory.all_sites}) == len(inventory.all_sites)


def test_what_is_left_alone_is_told_by_module() -> None:
    left_alone = take_inventory(tiny_model("gpt2")).left_alone
    tied = "tied: transformer.wte.weight = lm_head.weight"
    assert left_alone["lm_head"] == left_alone["transformer.wte"] == tied
    assert left_alone["transformer.ln_f"] == "vector (norm or bias)"
    assert not any(name.endswith((".c_attn", ".c_fc", ".c_proj")) for name in left_alone)
    routers = {
        name: reason
        for name, reason in take_inventory(tiny_model("mixtral")).left_alone.items()
        if name.endswith(".gate")
    }
    assert set(routers.values()) == {"router or unknown kind of weight"}


def test_what_a_family_keeps_in_fp32_is_no_site() -> None:
    """Its names stand for whole parts of a module's name."""
    block = modules(
        fn=nn.Linear(4, 4),
        ffn=modules(up=nn.Linear(4, 4), gate=nn.Linear(4, 4)),
        mlp=modules(gate=nn.Linear(4, 4)),
        norm=nn.LayerNorm(4),
        other=nn.Linear(4, 4),
    )
    model = modules(h=stack(1, block))
    setattr(model, "_keep_in_fp32_modules_strict", {"fn", "mlp.gate.weight", "norm"})  # noqa: B010
    setattr(model, "_keep_in_fp32_modules", ["other"])  # noqa: B010 - for fp16 only
    inventory = take_inventory(model)
    assert {s.name for s in inventory.all_sites} == {"h.0.ffn.up", "h.0.ffn.gate", "h.0.other"}
    reasons = {name: why for name, why in reasons_of(inventory).items() if "bias" not in name}
    assert reasons == {
        "h.0.fn.weight": "kept in fp32 by its family",
        "h.0.mlp.gate.weight": "kept in fp32 by its family",
        "h.0.norm.weight": "vector (norm or bias)",
    }


def test_what_weighs_the_heads_of_an_indexer_is_no_site() -> None:
    indexer = modules(weights_proj=nn.Linear(4, 2, bias=False), wq=nn.Linear(4, 4, bias=False))
    inventory = take_inventory(modules(h=stack(1, modules(indexer=indexer))))
    assert [site.name for site in inventory.all_sites] == ["h.0.indexer.wq"]
    name = "h.0.indexer.weights_proj.weight"
    assert reasons_of(inventory) == {name: "weighs the heads of an indexer"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_matrices_are_what_their_modules_multiply_with(family: str) -> None:
    model = tiny_model(family)
    for site in take_inventory(model).all_sites:
        if site.expert is None:
            bias = site.module.bias
            inputs = torch.randn(3, site.shape[1])
            expected = inputs @ site.weight.T + (0.0 if bias is None else bias)
            with torch.no_grad():
                torch.testing.assert_close(site.module(inputs), expected)


def expert_output(sites: dict[str, WeightSite], tokens: Tensor) -> Tensor:
    gate, up = (tokens @ sites["gate_up_proj"].weight.T).chunk(2, dim=-1)
    return nn.functional.silu(gate) * up @ sites["down_proj"].weight.T


def test_matrices_of_experts_are_what_they_multiply_with() -> None:
    inventory = take_inventory(tiny_model("mixtral"))
    tokens = torch.randn(5, 32)
    for expert in (0, 3, 7):
        sites = {s.parameter_name: s for s in inventory.sites[0] if s.expert == expert}
        places = torch.full((5, 1), expert)
        module = sites["down_proj"].module
        with torch.no_grad():
            output = module(tokens, places, torch.ones(5, 1))
        torch.testing.assert_close(output, expert_output(sites, tokens))


@pytest.mark.parametrize("family", TURNED_EXPERTS)
def test_experts_that_are_stored_turned(family: str) -> None:
    model = tiny_model(family)
    inventory = take_inventory(model)
    shapes = shapes_of(inventory, 0)
    layer = "feed_forward" if family == "llama4" else "mlp"
    for expert in range(4):
        assert shapes[f"{layer}.experts.{expert}.gate_up_proj"] == (128, 32)
        assert shapes[f"{layer}.experts.{expert}.down_proj"] == (32, 64)
    assert f"{layer}.router" not in shapes
    assert len([name for name in shapes if ".experts." in name]) == 8
    assert all(site.stored_transposed == site.is_expert for site in inventory.all_sites)


def fused(*shapes: tuple[int, ...]) -> nn.Module:
    module = nn.Module()
    for number, shape in enumerate(shapes):
        module.register_parameter(f"stack_{number}", nn.Parameter(torch.randn(shape)))
    return module


@pytest.mark.parametrize(
    ("shapes", "first"),
    [
        (((3, 12, 4), (3, 4, 6)), (12, 4)),
        (((3, 4, 12), (3, 6, 4)), (12, 4)),
        # As wide inside as outside, and half as wide.
        (((3, 8, 4), (3, 4, 4)), (8, 4)),
        (((3, 4, 8), (3, 4, 4)), (8, 4)),
        (((3, 4, 4), (3, 2, 4)), (4, 4)),
        # Fewer in the second: some experts compute nothing.
        (((5, 12, 4), (3, 4, 6)), (12, 4)),
    ],
)
def test_how_fused_experts_are_stored_is_seen_by_their_shapes(
    shapes: tuple[tuple[int, ...], ...], first: tuple[int, int]
) -> None:
    block = modules(mixing=modules(linear=nn.Linear(4, 4)), experts=fused(*shapes))
    model = configured(modules(layers=nn.ModuleList([block])), 1)
    sites = [site for site in take_inventory(model).all_sites if site.is_expert]
    assert len(sites) == sum(shape[0] for shape in shapes)
    assert {site.shape for site in sites} == {first, (4, first[0] // 2)}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("experts", ((3, 12, 4), (3, 4, 12))),
        ("experts", ((3, 12, 4), (3, 12, 4), (3, 4, 12))),
        ("experts", ((3, 12, 4), (3, 5, 6))),
        ("experts", ((3, 12, 4),)),
        ("mixer", ((3, 12, 4), (3, 4, 6))),
    ],
    ids=["no gate", "gate apart", "no chain", "one alone", "no experts"],
)
def test_stacks_that_can_be_read_both_ways_are_left_alone(
    name: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    block = modules(mixing=modules(linear=nn.Linear(4, 4)), **{name: fused(*shapes)})
    model = configured(modules(layers=nn.ModuleList([block])), 1)
    inventory = take_inventory(model)
    assert not any(site.is_expert for site in inventory.all_sites)
    reason = reasons_of(inventory)[f"layers.0.{name}.stack_0"]
    assert reason == "router or unknown kind of weight"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_writing_to_a_site_changes_the_model(family: str) -> None:
    model = tiny_model(family)
    ids = torch.arange(3, 60).view(3, 19)
    with torch.no_grad():
        original = model(input_ids=ids).logits
        for site in take_inventory(model).sites[0]:
            stored = site.parameter.clone()
            site.weight.copy_(torch.zeros(site.shape))
            changed = site.parameter != stored
            assert int(changed.sum()) == site.shape[0] * site.shape[1]
            assert not torch.equal(model(input_ids=ids).logits, original), site.name
            site.parameter.copy_(stored)
        assert torch.equal(model(input_ids=ids).logits, original)


def test_writing_one_weight_lands_where_the_module_reads_it() -> None:
    gpt2 = {site.name: site for site in take_inventory(tiny_model("gpt2")).sites[0]}
    site = gpt2["transformer.h.0.mlp.c_fc"]
    site.weight[100, 7] = 42.0
    assert site.parameter[7, 100] == 42.0
    mixtral = {site.name: site for site in take_inventory(tiny_model("mixtral")).sites[1]}
    site = mixtral["model.layers.1.mlp.experts.6.down_proj"]
    before = site.parameter.clone()
    site.weight[31, 63] = 42.0
    assert site.parameter[6, 31, 63] == 42.0
    assert int((site.parameter != before).sum()) == 1


def test_site_follows_a_parameter_that_is_replaced() -> None:
    model = tiny_model("llama")
    site = take_inventory(model).sites[0][0]
    site.module.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.bfloat16))
    assert site.parameter is site.module.weight
    assert site.weight.dtype == torch.bfloat16


def test_reasons_for_what_is_left_alone() -> None:
    llama = reasons_of(take_inventory(tiny_model("llama")))
    assert llama["model.embed_tokens.weight"] == "embedding"
    assert llama["model.norm.weight"] == "vector (norm or bias)"
    assert llama["model.layers.1.input_layernorm.weight"] == "vector (norm or bias)"
    assert llama["lm_head.weight"] == "outside the blocks (head or projection)"
    gpt2 = reasons_of(take_inventory(tiny_model("gpt2")))
    assert gpt2["transformer.wte.weight"] == "tied: transformer.wte.weight = lm_head.weight"
    assert gpt2["transformer.wpe.weight"] == "embedding"
    assert gpt2["transformer.h.0.attn.c_attn.bias"] == "vector (norm or bias)"
    mixtral = reasons_of(take_inventory(tiny_model("mixtral")))
    assert mixtral["model.layers.0.mlp.gate.weight"] == "router or unknown kind of weight"


def test_matrix_that_is_tied_is_no_site() -> None:
    model = tiny_model("llama")
    layers: Any = model.get_submodule("model.layers")
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    inventory = take_inventory(model)
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    assert not {site.name for site in inventory.all_sites} & set(names)
    reason = " = ".join(f"{name}.weight" for name in names)
    assert reasons_of(inventory)[f"{names[0]}.weight"] == f"tied: {reason}"
    assert len(inventory.all_sites) == 12


def test_linears_beside_experts_are_routers() -> None:
    model = model_from(
        Qwen2MoeConfig(
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            **SMALL,
        )
    )
    inventory = take_inventory(model)
    names = set(shapes_of(inventory, 0))
    assert {"mlp.shared_expert.up_proj", "mlp.experts.0.down_proj"} <= names
    assert not {"mlp.gate", "mlp.shared_expert_gate"} & names
    assert "model.layers.0.mlp.shared_expert_gate.weight" in reasons_of(inventory)


def test_experts_in_a_list_of_their_own() -> None:
    expert = modules(up=nn.Linear(4, 8), down=nn.Linear(8, 4))
    moe = modules(gate=nn.Linear(4, 3), experts=nn.ModuleList([expert]), shared=nn.Linear(4, 4))
    model = configured(modules(layers=nn.ModuleList([modules(moe=moe)])), 1)
    inventory = take_inventory(model)
    assert shapes_of(inventory, 0) == {"moe.experts.0.up": (8, 4), "moe.experts.0.down": (4, 8)}
    assert all(site.is_expert and site.expert is None for site in inventory.all_sites)


def test_linear_inside_a_router_is_no_site() -> None:
    model = model_from(HunYuanMoEV1Config(num_experts=4, moe_topk=2, **SMALL))
    inventory = take_inventory(model)
    assert "model.layers.0.mlp.gate.wg" not in {site.name for site in inventory.all_sites}


def test_vectors_of_three_dimensions_are_no_sites() -> None:
    model = model_from(
        RwkvConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
        )
    )
    names = {site.name for site in take_inventory(model).all_sites}
    assert not {name for name in names if "time_mix" in name}


def test_convolutions_and_norms_are_no_sites() -> None:
    block = modules(
        conv=nn.Conv1d(4, 4, 3),
        norm=nn.LayerNorm(4),
        proj=nn.Linear(4, 4),
        embed=nn.Embedding(4, 4),
    )
    blocks = BlockList("h", nn.ModuleList([block]))
    assert [site.name for site in find_sites(blocks, 0)] == ["h.0.proj"]


def test_block_that_is_a_linear_is_a_site() -> None:
    sites = find_sites(BlockList("h", stack(3)), 2)
    assert [(site.name, site.shape) for site in sites] == [("h.2", (4, 4))]


def test_blocks_without_matrices_are_refused() -> None:
    model = configured(modules(layers=stack(2, nn.LayerNorm(4))), 2)
    message = "found 2 blocks at layers in Module, but no weight matrix in them that can be pruned"
    with pytest.raises(SecateurError, match=message):
        take_inventory(model)


def test_blocks_are_the_largest_list_of_the_right_length() -> None:
    small = modules(decoder=modules(layers=stack(3)), aux=stack(3, nn.Linear(2, 2)))
    assert find_blocks(configured(small, 3)).name == "decoder.layers"
    other = modules(vision=stack(5, nn.Linear(64, 64)), text=modules(h=stack(3)))
    assert find_blocks(configured(other, 3)).name == "text.h"


def test_lists_inside_blocks_do_not_count() -> None:
    block = modules(experts=stack(2, nn.Linear(64, 64)))
    model = modules(layers=stack(2, block))
    assert find_blocks(configured(model, 2)).name == "layers"
    blocks = find_blocks(configured(model, 2))
    assert [blocks.block_name(index) for index in range(len(blocks))] == ["layers.0", "layers.1"]


def test_a_longer_name_is_not_inside_a_shorter_one() -> None:
    model = configured(modules(layer=stack(1), layers=stack(2)), 2)
    assert find_blocks(model).name == "layers"


def test_model_without_a_configuration_takes_the_largest_list() -> None:
    assert find_blocks(modules(a=stack(2), b=stack(4))).name == "b"


def test_missing_blocks_are_refused() -> None:
    model = configured(modules(layers=stack(2), h=stack(5)), 3)
    message = (
        r"expected a list of 3 decoder blocks in Module, found module lists: layers \(2\), h \(5\)"
    )
    with pytest.raises(SecateurError, match=message):
        find_blocks(model)
    with pytest.raises(SecateurError, match=r"list of some decoder blocks in Linear, .* none"):
        find_blocks(nn.Linear(2, 2))


def test_configuration_of_the_text_model_is_found() -> None:
    inner = SimpleNamespace(num_hidden_layers=2)
    model = modules(layers=stack(2))
    vars(model)["config"] = SimpleNamespace(num_hidden_layers=9, get_text_config=lambda: inner)
    assert text_config(model) is inner
    assert find_blocks(model).name == "layers"
    llama = tiny_model("llama")
    assert text_config(llama) is llama.config
