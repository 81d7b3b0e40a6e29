"""Compact checkpoints through plain from_pretrained and save_pretrained, family by family."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model
from integrations.compact_models import (
    IDS,
    RANK,
    assert_same,
    compressed,
    dense_sites,
    in_dtype,
    loaded,
    logits_of,
    saved,
    stored_config,
)
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import secateur
from secateur.integrations.transformers_quantizer import (
    SecateurConfig,
    SecateurQuantizer,
    mark_compressed,
    register,
)
from secateur.models.swap import compressed_modules, replace_module, to_dense, unpack_layers
from secateur.modules import LowRankLinear, Sparse24Linear
from secateur.modules.weight24 import Weight24Module
from secateur.recipe import DropBlocksStage, FactorStage, PruneStage
from secateur_kernels.layouts import LowRank
from secateur_kernels.testing.tolerance import assert_same_bits

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

ROUND_TRIPS = [
    *[(family, "sparse24", BF16) for family in FAMILIES],
    ("gpt2", "low_rank", BF16),
    ("phi3", "low_rank", FP32),
    ("opt", "sparse24_low_rank", BF16),
    ("llama", "mixed", FP16),
    ("gemma3", "mixed", BF16),
    ("gpt2", "mixed", BF16),
    ("mixtral", "mixed", BF16),
    ("llama", "sparse24", FP32),
]


def packed_states(model: nn.Module) -> set[bool]:
    layers = compressed_modules(model).values()
    return {layer.is_packed for layer in layers if isinstance(layer, Weight24Module)}


@pytest.mark.parametrize(("family", "kind", "dtype"), ROUND_TRIPS, ids=str)
def test_round_trip(family: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = compressed(family, kind, dtype)
    folder = saved(model, tmp_path / "one", max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file(), "sharded"
    again = loaded(folder)
    assert_same(model, again)
    assert list(compressed_modules(model)) == list(compressed_modules(again))
    if kind != "low_rank":
        assert packed_states(again) == {dtype != FP32}
    assert not again.training
    assert_same(model, loaded(saved(again, tmp_path / "two")))


def test_the_configuration_lists_layers_by_name(tmp_path: Path) -> None:
    folder = saved(compressed("llama", "mixed"), tmp_path)
    config = stored_config(folder)["quantization_config"]
    blocks = [f"model.layers.{block}" for block in range(2)]
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    names = [
        *[f"self_attn.{name}" for name in attention],
        *[f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")],
    ]
    listed = {group["kind"]: group for group in config.pop("layers")}
    assert config == {"quant_method": "secateur", "format_version": 1}
    in_order = [f"{block}.{name}" for block in blocks for name in names]
    assert listed == {
        "low_rank": {
            "kind": "low_rank", "rank": RANK, "bias": False, "modules": in_order[::3],
        },
        "sparse24_low_rank": {
            "kind": "sparse24_low_rank", "rank": RANK, "bias": False, "modules": in_order[1::3],
        },
        "sparse24": {"kind": "sparse24", "bias": False, "modules": in_order[2::3]},
    }  # fmt: skip


def test_the_files_hold_the_canonical_form(tmp_path: Path) -> None:
    folder = saved(compressed("gpt2"), tmp_path)
    name = "transformer.h.0.mlp.c_fc"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = {key.rpartition(".")[2]: file.get_slice(key) for key in file.keys() if name in key}
    found = {leaf: (part.get_dtype(), part.get_shape()) for leaf, part in stored.items()}
    # GPT-2 stores its dense weights as [K, N]; a compressed one is [N, K] as everywhere.
    assert found == {
        "weight": ("BF16", [128, 16]),
        "indices": ("U8", [128, 4]),
        "bias": ("BF16", [128]),
    }


def test_a_subprocess_needs_the_import_alone(tmp_path: Path) -> None:
    model = compressed("llama", "mixed")
    folder = saved(model, tmp_path / "model")
    torch.save(logits_of(model), tmp_path / "logits.pt")
    code = (
        "import secateur, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "torch.set_num_threads(1)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"ids = torch.tensor({IDS.tolist()})\n"
        "logits = model(input_ids=ids, use_cache=False).logits.detach()\n"
        f"assert torch.equal(logits, torch.load({str(tmp_path / 'logits.pt')!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_layers_of_one_input_share_down(tmp_path: Path) -> None:
    model = in_dtype(tiny_model("llama"), BF16)
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    sites = {site.name: site for site in dense_sites(model)}
    down = LowRank.from_dense(sites[names[0]].weight.detach(), RANK).down
    leader: LowRankLinear | None = None
    for name in names:
        factors = LowRank(down, sites[name].weight.detach() @ down.T, (sites[name].shape[0],))
        layer = LowRankLinear.from_factors(factors, shares_down_with=leader)
        replace_module(model, name, layer)
        leader = leader or layer
    mark_compressed(model)
    folder = saved(model, tmp_path / "one")
    assert stored_config(folder)["quantization_config"]["shared_down"] == {
        names[1]: names[0],
        names[2]: names[0],
    }
    again = loaded(folder)
    assert_same(model, again)
    first, second = (again.get_submodule(name) for name in names[:2])
    assert isinstance(first, LowRankLinear)
    assert isinstance(second, LowRankLinear)
    assert second.held_down() is first.down
    assert_same(model, loaded(saved(again, tmp_path / "two")))


def test_a_fused_layer_has_factors_by_group(tmp_path: Path) -> None:
    model = in_dtype(tiny_model("phi3"), BF16)
    for site in dense_sites(model):
        if site.name.endswith("qkv_proj"):
            parts = site.weight.detach().split([32, 16, 16])
            stacked = LowRank.stack([LowRank.from_dense(part, 8) for part in parts])
            replace_module(model, site.name, LowRankLinear.from_factors(stacked))
    mark_compressed(model)
    folder = saved(model, tmp_path)
    (group,) = stored_config(folder)["quantization_config"]["layers"]
    assert group["group_rows"] == [32, 16, 16]
    assert_same(model, loaded(folder))


def test_a_bias_that_the_dense_layer_did_not_have(tmp_path: Path) -> None:
    model = in_dtype(tiny_model("llama"), BF16)
    site = dense_sites(model)[0]
    factors = LowRank.from_dense(site.weight.detach(), RANK)
    layer = LowRankLinear.from_factors(factors, torch.ones(site.shape[0], dtype=BF16))
    replace_module(model, site.name, layer)
    mark_compressed(model)
    assert_same(model, loaded(saved(model, tmp_path)))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize(("stored", "asked"), [(BF16, FP32), (FP32, BF16), (BF16, FP16)])
def test_another_dtype(
    family: str, stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    model = compressed(family, "mixed", BF16)
    if stored == FP32:
        unpack_layers(model)
        model.to(FP32)
    folder = saved(model, tmp_path)
    again = loaded(folder, dtype=asked)
    assert packed_states(again) == {asked != FP32}
    assert again.dtype == asked
    for name, tensor in again.state_dict().items():
        before = model.state_dict()[name]
        expected = before.to(asked) if before.is_floating_point() else before
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor, expected), name
    assert bool(logits_of(again).isfinite().all())


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_device_map(device_map: Any, tmp_path: Path) -> None:
    model = compressed("llama", "mixed")
    again = loaded(saved(model, tmp_path / "one"), device_map=device_map)
    assert_same(model, again.to("cpu"))
    assert_same(model, loaded(saved(again, tmp_path / "two")))


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_tied_embeddings_stay_tied(family: str, tmp_path: Path) -> None:
    model = compressed(family)
    model.tie_weights()
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = True
    again = loaded(saved(model, tmp_path))
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert_same(model, again)


def test_casting_keeps_every_weight(tmp_path: Path) -> None:
    model = loaded(saved(compressed("llama", "mixed"), tmp_path / "one"))
    layers = compressed_modules(model).values()
    before = [layer.data.clone() for layer in layers if isinstance(layer, Sparse24Linear)]
    weights = {n: t for n, t in model.state_dict().items() if n.endswith((".weight", ".indices"))}
    after = [layer.to(BF16).data for layer in layers if isinstance(layer, Sparse24Linear)]
    assert len(before) == 4
    for left, right in zip(before, after, strict=True):
        assert torch.equal(left, right)
    model.to(FP32)
    assert packed_states(model) == {False}
    assert bool(logits_of(model).isfinite().all())
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name].float(), tensor.float()), name
    assert_same(model, loaded(saved(model, tmp_path / "two")))


def test_generation_is_that_of_the_model_in_memory(tmp_path: Path) -> None:
    model = compressed("qwen3")
    again = loaded(saved(model, tmp_path))
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), again.generate(IDS, **options))


@pytest.mark.compiled
def test_a_whole_model_compiles(tmp_path: Path) -> None:
    model = loaded(saved(compressed("llama", "mixed"), tmp_path))
    quantizer: Any = model.hf_quantizer
    assert quantizer.is_compileable
    run = torch.compile(model.forward, fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled = run(input_ids=IDS, use_cache=False).logits
    assert torch.equal(compiled, logits_of(model))


def test_gradients_pass_through_packed_layers(tmp_path: Path) -> None:
    model = loaded(saved(compressed("llama", "mixed"), tmp_path))
    quantizer: Any = model.hf_quantizer
    assert quantizer.is_trainable
    assert quantizer.is_qat_trainable  # factors, and 2:4 weights once they are unpacked
    model(input_ids=IDS, labels=IDS).loss.backward()
    first = compressed_modules(model)["model.layers.0.self_attn.q_proj"]
    for parameter in (model.get_input_embeddings().weight, first.up):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0


def test_a_copy_is_a_whole_model(tmp_path: Path) -> None:
    model = loaded(saved(compressed("llama", "mixed"), tmp_path / "one"))
    twin = copy.deepcopy(model)
    to_dense(model)
    assert_same(twin, loaded(saved(twin, tmp_path / "two")))


def test_the_base_model_loads_without_its_prefix(tmp_path: Path) -> None:
    model = compressed("llama", "mixed")
    folder = saved(model, tmp_path / "one")
    base, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert next(iter(compressed_modules(base))) == "layers.0.self_attn.q_proj"
    with torch.no_grad():
        expected = model.model(input_ids=IDS).last_hidden_state
        assert torch.equal(base(input_ids=IDS).last_hidden_state, expected)
    # Saved by itself, and put under a head again.
    head = AutoModelForCausalLM.from_pretrained(saved(base, tmp_path / "two"))
    assert list(compressed_modules(head)) == list(compressed_modules(model))


def test_dequantize_gives_a_plain_model(tmp_path: Path) -> None:
    model = compressed("gpt2", "mixed")
    again = loaded(saved(model, tmp_path / "one"))
    plain = again.dequantize()
    assert not compressed_modules(plain)
    folder = saved(plain, tmp_path / "two")
    assert "quantization_config" not in stored_config(folder)
    reread = loaded(folder)
    assert_same(plain, reread)
    assert type(reread.transformer.h[0].attn.c_attn).__name__ == "Conv1D"


@pytest.mark.parametrize("dtype", [None, BF16, FP32])
def test_dequantize_rounds_no_more_than_loading_does(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    """Frequencies of rotary embeddings stay fp32, and the model is as good as its copy on disk."""
    plain = loaded(saved(compressed("llama", "mixed"), tmp_path / "one")).dequantize(dtype)
    assert plain.dtype == (dtype or BF16)
    reread = loaded(saved(plain, tmp_path / "two"))
    for name, buffer in plain.named_buffers():
        assert_same_bits(buffer, reread.get_buffer(name))
    assert_same(plain, reread)


def test_a_model_that_was_saved_is_dequantized_like_before(tmp_path: Path) -> None:
    model = loaded(saved(compressed("llama"), tmp_path / "one"))
    before = logits_of(model)
    saved(model, tmp_path / "two")
    model.dequantize()
    assert not compressed_modules(model)
    assert model.dtype == BF16
    assert torch.equal(logits_of(model), before)


def test_saving_describes_the_layers_as_they_are_now(tmp_path: Path) -> None:
    model = loaded(saved(compressed("llama"), tmp_path / "one"))
    name = "model.layers.0.mlp.up_proj"
    layer = compressed_modules(model)[name]
    replace_module(model, name, layer.to_linear())
    again = loaded(saved(model, tmp_path / "two"))
    assert name not in compressed_modules(again)
    assert len(compressed_modules(again)) == 13
    to_dense(model)
    folder = saved(model, tmp_path / "three")
    assert "quantization_config" not in stored_config(folder)
    assert_same(model, loaded(folder))


def test_marking_a_dense_model_changes_nothing() -> None:
    model = tiny_model("llama")
    assert mark_compressed(model) == []
    assert getattr(model.config, "quantization_config", None) is None
    assert getattr(model, "hf_quantizer", None) is None


def test_registering_again_is_harmless(tmp_path: Path) -> None:
    register()
    register()
    model = loaded(saved(compressed("llama"), tmp_path))
    assert isinstance(model.hf_quantizer, SecateurQuantizer)
    assert isinstance(model.config.quantization_config, SecateurConfig)
    assert "secateur" in repr(model.config)


def test_a_model_in_memory_keeps_its_methods() -> None:
    """transformers refuses .float() for what it calls quantised."""
    model: PreTrainedModel = compressed("llama", "low_rank")
    assert model.float().dtype == FP32


@pytest.mark.parametrize(
    "stage",
    [
        {"stage": "factor", "method": "svd", "rank": 4},
        {"stage": "drop_blocks", "granularity": "mlp", "blocks": [0]},
    ],
    ids=["factors", "no MLP"],
)
def test_what_is_compressed_in_memory_describes_itself_when_saved(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    model = secateur.compress(tiny_model("llama"), {"stages": [stage]})
    assert getattr(model.config, "quantization_config", None) is None
    again = loaded(saved(model, tmp_path))
    assert "quantization_config" in stored_config(tmp_path)
    assert_same(model, again)


def test_further_stages_in_memory_follow_each_other(tmp_path: Path) -> None:
    factored = secateur.compress(tiny_model("llama"), FactorStage(method="svd", rank=4))
    both = secateur.compress(factored, DropBlocksStage(blocks=(0,)))
    assert_same(both, loaded(saved(both, tmp_path)))


def test_zeros_are_saved_as_they_are_in_memory(tmp_path: Path) -> None:
    model = secateur.compress(tiny_model("llama"), PruneStage(method="magnitude", pattern="2:4"))
    assert "quantization_config" not in stored_config(saved(model, tmp_path))
