"""Whatever is wrong with a compact checkpoint is an error that names the place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from integrations.compact_models import (
    compressed,
    dense_sites,
    edit_config,
    in_dtype,
    loaded,
    make_low_rank,
    pruned,
    saved,
    spoil,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import CompactLayers, LayerSpec
from secateur.integrations.transformers_quantizer import SecateurConfig, mark_compressed
from secateur.models.swap import compressed_modules, replace_module
from secateur.modules import LowRankLinear, Sparse24Linear

Q = "model.layers.0.self_attn.q_proj"
"""Factors."""
K = "model.layers.0.self_attn.k_proj"
"""2:4 and factors."""
V = "model.layers.0.self_attn.v_proj"
"""2:4."""
DOES_NOT_FIT = "the weights do not fit the configuration: "


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(compressed("llama", "mixed"), tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt: its first layers are factors, both, 2:4, and so on."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def refused(folder: Path, match: str, **options: Any) -> None:
    with pytest.raises(SecateurError, match=match):
        AutoModelForCausalLM.from_pretrained(folder, **options)


# Tensors.


@pytest.mark.parametrize("name", [f"{V}.indices", f"{V}.weight", f"{Q}.up", f"{K}.down"])
def test_missing_tensor_of_a_compressed_layer(folder: Path, name: str) -> None:
    spoil(folder, lambda tensors: tensors.pop(name))
    refused(folder, f"{DOES_NOT_FIT}{name} is missing")


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_missing_tensor_of_another_layer(folder: Path, name: str) -> None:
    spoil(folder, lambda tensors: tensors.pop(name))
    refused(folder, f"{DOES_NOT_FIT}{name} is missing")


def test_missing_layer(folder: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for leaf in ("weight", "indices"):
            del tensors[f"{V}.{leaf}"]

    spoil(folder, drop)
    refused(folder, f"{DOES_NOT_FIT}{V}.weight is missing; {V}.indices is missing")


def test_many_faults_are_counted(folder: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith((".up", ".indices"))]:
            del tensors[name]

    # Ten layers with factors, nine with indices.
    spoil(folder, drop)
    refused(folder, r"is missing; .* is missing; .* is missing; and 16 more$")


@pytest.mark.parametrize("name", [f"{V}.up", f"{V}.bias", f"{Q}.weight", f"{Q}.indices"])
def test_tensor_too_many(folder: Path, name: str) -> None:
    spoil(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refused(folder, f"{DOES_NOT_FIT}{name} is not expected")


def test_layer_that_is_not_listed(folder: Path) -> None:
    def forget(config: dict[str, Any]) -> None:
        for group in config["layers"]:
            group["modules"] = [name for name in group["modules"] if name != V]

    edit_config(folder, forget)
    refused(folder, f"{V}.indices is there, but the configuration lists no compressed layer {V}")


def test_low_rank_layer_that_is_not_listed(folder: Path) -> None:
    edit_config(folder, lambda config: config["layers"][0]["modules"].remove(Q))
    refused(folder, f"{DOES_NOT_FIT}{Q}.weight is missing")


@pytest.mark.parametrize(
    ("name", "was", "expected"),
    [
        (f"{V}.weight", [16, 8], [16, 16]),
        (f"{V}.indices", [16, 2], [16, 4]),
        (f"{Q}.up", [32, 8], [32, 16]),
    ],
)
def test_tensor_of_another_shape(
    folder: Path, name: str, was: list[int], expected: list[int]
) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name][:, : tensors[name].shape[1] // 2].contiguous()

    spoil(folder, cut)
    message = f"{name} is {was}, expected {expected}".replace("[", r"\[")
    refused(folder, DOES_NOT_FIT + message)


def test_dense_tensor_of_another_shape(folder: Path) -> None:
    """transformers 5.23 finds that itself; 5.17 does not."""

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:16].contiguous()

    spoil(folder, cut)
    with pytest.raises((SecateurError, RuntimeError), match=r"model\.norm\.weight is|mismatched"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_tensors_of_another_type(folder: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors[f"{V}.indices"] = tensors[f"{V}.indices"].to(torch.int32)
        tensors[f"{V}.weight"] = tensors[f"{V}.weight"].to(torch.int8)

    spoil(folder, widen)
    floats = "BF16 or F16 or F32 or F64"
    refused(folder, f"{V}.weight is I8, expected {floats}; {V}.indices is I32, expected U8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layer", [K, V])
def test_corrupt_byte(folder: Path, layer: str, dtype: torch.dtype) -> None:
    def spoil_byte(tensors: dict[str, Tensor]) -> None:
        tensors[f"{layer}.indices"][3, 2] = 0x40

    spoil(folder, spoil_byte)
    place = r"group \[3, 4\] has the index pair \(0, 0\), expected two increasing columns"
    refused(folder, f"{layer}: the packed weight is corrupt: {place}", dtype=dtype)


# The configuration.

CONFIG_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer format": (
        lambda config: config.update(format_version=2),
        "expected quantization_config of secateur in format 1, got secateur in format 2: a newer",
    ),
    "unknown key": (
        lambda config: config.update(pattern="2:4"),
        "quantization_config: unknown key pattern",
    ),
    "no layers": (
        lambda config: config.pop("layers"),
        "quantization_config lists no layers, but the model is compressed",
    ),
    "layers of another type": (
        lambda config: config.update(layers={}),
        r"quantization_config\.layers: expected a list of compressed layers, got \{\}",
    ),
    "unknown kind": (
        lambda config: config["layers"][2].update(kind="sparse48"),
        r"quantization_config\.layers\.2\.kind: expected one of sparse24, low_rank, sparse24_lo",
    ),
    "unknown key of a layer": (
        lambda config: config["layers"][0].update(scale=1.0),
        r"layers\.0\.scale: unknown key; known are kind, bias, rank, group_rows, modules",
    ),
    "no rank": (
        lambda config: config["layers"][0].pop("rank"),
        r"layers\.0: expected a rank if and only if there are factors \(low_rank\)",
    ),
    "a rank too many": (
        lambda config: config["layers"][2].update(rank=16),
        r"layers\.2: expected a rank if and only if there are factors \(sparse24\)",
    ),
    "rank zero": (
        lambda config: config["layers"][0].update(rank=0),
        r"layers\.0: expected a rank of at least 1, got 0",
    ),
    "groups without factors": (
        lambda config: config["layers"][2].update(group_rows=[16, 16]),
        r"layers\.2: expected group_rows with factors only",
    ),
    "another rank": (
        lambda config: config["layers"][0].update(rank=32),
        rf"{Q}\.down is \[16, 32\], expected \[32, 32\]; {Q}\.up is \[32, 16\]",
    ),
    "another bias": (
        lambda config: config["layers"][0].update(bias=True),
        f"{Q}.bias is missing",
    ),
    "groups that do not add up": (
        lambda config: config["layers"][0].update(group_rows=[16, 8]),
        rf"{Q} \[32, 32\]: expected group_rows that add up to 32, got \(16, 8\)",
    ),
    "listed twice": (
        lambda config: config["layers"][2]["modules"].append(Q),
        rf"layers\.2: {Q} is listed twice",
    ),
    "no such layer": (
        lambda config: config["layers"][2]["modules"].append("model.layers.9.mlp.up_proj"),
        "lists the compressed layer model.layers.9.mlp.up_proj, which LlamaForCausalLM does not",
    ),
    "no linear layer": (
        lambda config: config["layers"][2]["modules"].append("model.layers.0.mlp"),
        "expected a linear layer at model.layers.0.mlp, found LlamaMLP",
    ),
    "shares with a layer that has no down": (
        lambda config: config.update(shared_down={Q: V}),
        f"shared_down: expected two low-rank layers, of which the second .*, got {Q} and {V}",
    ),
    "shares with itself": (
        lambda config: config.update(shared_down={Q: Q}),
        f"shared_down: expected two low-rank layers, of which the second .*, got {Q} and {Q}",
    ),
    "shares with a layer of another shape": (
        lambda config: config.update(shared_down={Q: "model.layers.0.mlp.down_proj"}),
        rf"{Q} \[32, 32\]: expected a shared down \[16, 32\], got \[16, 64\]",
    ),
    "shares nothing that can be read": (
        lambda config: config.update(shared_down=[Q]),
        r"quantization_config\.shared_down: expected keys and values",
    ),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_configuration(folder: Path, fault: str) -> None:
    change, message = CONFIG_FAULTS[fault]
    edit_config(folder, change)
    refused(folder, message)


def test_columns_that_cannot_be_grouped_in_fours(folder: Path) -> None:
    spec = LayerSpec(kind="sparse24", bias=False)
    with pytest.raises(SecateurError, match="expected in_features divisible by 4, got 6"):
        spec.build((8, 6), torch.bfloat16)


def test_offloaded_layers(folder: Path, tmp_path: Path) -> None:
    device_map = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
    refused(
        folder,
        r"cannot be offloaded to the CPU or the disk; .*: model\.layers\.0\.self_attn",
        device_map={**device_map, "model.rotary_emb": "cpu", "lm_head": "cpu"},
        offload_folder=tmp_path / "offload",
    )


# Models in memory that cannot be saved.


def test_tied_layer() -> None:
    model = in_dtype(tiny_model("gpt2"), torch.bfloat16)
    replace_module(model, "lm_head", LowRankLinear.from_linear(model.get_output_embeddings(), 16))
    with pytest.raises(SecateurError, match=r"lm_head\.weight is tied to .*, but lm_head is co"):
        mark_compressed(model)


def test_fused_layer() -> None:
    model = tiny_model("phi3")
    name = "model.layers.0.mlp.gate_up_proj"
    replace_module(model, name, Sparse24Linear(32, 128, False, activation="silu_and_mul"))
    with pytest.raises(SecateurError, match=f"{name} multiplies gate and up in one layer"):
        mark_compressed(model)


def test_layer_that_shares_with_one_outside() -> None:
    model = tiny_model("llama")
    leader = LowRankLinear(32, 32, 16)
    layer = LowRankLinear(32, 32, 16, False, shares_down_with=leader)
    replace_module(model, Q, layer)
    with pytest.raises(SecateurError, match=f"{Q} shares the down of .*: both go into one"):
        CompactLayers.of(model)


@pytest.mark.parametrize("other", [{"quant_method": "gptq"}, BitsAndBytesConfig(load_in_8bit=True)])
def test_model_of_another_method(other: Any) -> None:
    model = tiny_model("llama")
    make_low_rank(model, dense_sites(model)[0])
    model.config.quantization_config = other
    with pytest.raises(SecateurError, match="LlamaForCausalLM is quantised by another method"):
        mark_compressed(model)


# Packed while they are loaded.


def test_a_dense_checkpoint_is_packed(tmp_path: Path) -> None:
    dense = saved(pruned("llama"), tmp_path / "dense")
    model = loaded(dense, quantization_config=SecateurConfig())
    expected = compressed("llama")
    assert list(compressed_modules(model)) == list(compressed_modules(expected))
    assert "2:4 packed" in repr(model.get_submodule(Q))
    left, right = model.state_dict(), expected.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
    again = loaded(saved(model, tmp_path / "compact"))
    assert list(compressed_modules(again)) == list(compressed_modules(expected))


def test_named_layers_are_packed(tmp_path: Path) -> None:
    dense = saved(pruned("gpt2"), tmp_path)
    names = ["transformer.h.1.mlp.c_fc", "transformer.h.0.attn.c_attn"]
    model = loaded(dense, quantization_config=SecateurConfig(modules=names))
    assert list(compressed_modules(model)) == sorted(names)


def test_named_layer_that_is_not_24(tmp_path: Path) -> None:
    dense = saved(in_dtype(tiny_model("llama"), torch.bfloat16), tmp_path)
    config = SecateurConfig(modules=[Q])
    refused(dense, rf"{Q} \[32, 32\] is not 2:4: somewhere more than", quantization_config=config)
    with pytest.raises(SecateurError, match="expected modules as a list of names, got the string"):
        SecateurConfig(modules=Q)
    config = SecateurConfig(modules=["model.norm"])
    message = "expected the name of a dense linear layer in a block, got 'model.norm'"
    refused(dense, message, quantization_config=config)


def test_dense_model_has_nothing_to_pack(tmp_path: Path) -> None:
    dense = saved(in_dtype(tiny_model("llama"), torch.bfloat16), tmp_path)
    message = "found no linear layer of LlamaForCausalLM that is 2:4"
    refused(dense, message, quantization_config=SecateurConfig())


def test_full_precision_cannot_be_packed(tmp_path: Path) -> None:
    dense = saved(pruned("llama", torch.float32), tmp_path)
    message = "expected dtype bfloat16 or float16 to pack a model while it is loaded, got float32"
    refused(dense, message, quantization_config=SecateurConfig())
    model = loaded(dense, quantization_config=SecateurConfig(), dtype=torch.bfloat16)
    assert len(compressed_modules(model)) == 14


def test_missing_tensor_of_a_dense_checkpoint(tmp_path: Path) -> None:
    dense = saved(pruned("llama"), tmp_path)
    spoil(dense, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    message = f"{DOES_NOT_FIT}model.layers.1.mlp.up_proj.weight is missing"
    refused(dense, message, quantization_config=SecateurConfig())
