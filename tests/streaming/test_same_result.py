"""A streamed model is the one that is pruned in memory, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MOST_DIFFERENT, TURNED_EXPERTS, model_from, tiny_model
from safetensors.torch import load_file, save_file
from streaming_jobs import edit_weights, recipe_of, samples, save
from streaming_same import require_same
from thoroughness import most_telling
from transformers import AutoModelForCausalLM, DeepseekV3Config, GenerationConfig, LlamaConfig

QUICK = {"rounds": 1, "samples_per_round": 3}
METHODS: dict[str, dict[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt"},
    "unstructured": {"method": "wanda", "pattern": "unstructured", "sparsity": 0.37},
    "rgs": {"method": "rgs"},
    "wanda++": {"method": "wanda++", "reconstruct": QUICK},
    "published": {"method": "wanda++", "reconstruct": {"preset": "published", "rounds": 2}},
    "best-2:4": {"method": "best-2:4", "reconstruct": {"rounds": 1}},
    "undone": {"method": "wanda++", "reconstruct": {**QUICK, "rate": 20.0, "schedule": "constant"}},
}


# The others are streamed as 2:4 layers.
OTHERS = [name for name in FAMILIES if name not in MOST_DIFFERENT]


@pytest.mark.parametrize("name", most_telling([*FAMILIES, *TURNED_EXPERTS], ["llama", *OTHERS]))
def test_every_family(tmp_path: Path, name: str) -> None:
    # In shards that split blocks; the other tests read single files.
    folder = save(tiny_model(name, 3), tmp_path / "in", "20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples())


@pytest.mark.parametrize("name", METHODS)
def test_every_method(tmp_path: Path, name: str) -> None:
    folder = save(tiny_model("llama", 3), tmp_path / "in")
    require_same(folder, recipe_of(**METHODS[name]), tmp_path, samples())


@pytest.mark.parametrize("name", ["mixtral", *TURNED_EXPERTS])
def test_experts_that_all_see_all_tokens(tmp_path: Path, name: str) -> None:
    folder = save(tiny_model(name), tmp_path / "in")
    recipe = recipe_of(method="sparsegpt", calibrate_all_experts=True)
    require_same(folder, recipe, tmp_path, samples())


def test_magnitude_without_calibration(tmp_path: Path) -> None:
    folder = save(tiny_model("qwen3_moe", 3), tmp_path / "in", "30KB")
    require_same(folder, recipe_of(method="magnitude"), tmp_path)


@pytest.mark.parametrize("home", ["device", "host", "file"])
def test_wherever_activations_are_kept(tmp_path: Path, home: str) -> None:
    folder = save(tiny_model("gemma3", 3), tmp_path / "in")
    # More than a batch, and samples that do not fill the last one.
    tokens = samples(19, 96)
    require_same(folder, recipe_of(method="wanda"), tmp_path, tokens, activations=home)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_another_dtype(tmp_path: Path, dtype: str) -> None:
    folder = save(tiny_model("llama").bfloat16(), tmp_path / "in")
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples(), dtype)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_buffer_that_is_kept_in_fp32(tmp_path: Path, dtype: str) -> None:
    """DeepSeek's routers add a bias that its class keeps from 16 bits."""
    config = DeepseekV3Config(
        **FAMILIES["llama"](2).to_dict() | {"num_key_value_heads": 4},
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    folder = save(model_from(config).bfloat16(), tmp_path / "in")
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples(), dtype)


def test_some_matrices_left_alone(tmp_path: Path) -> None:
    folder = save(tiny_model("opt", 3), tmp_path / "in")
    recipe = recipe_of(
        method="wanda",
        ignore=["re:.*q_proj", "re:.*layers\\.1\\..*"],
        overrides=[{"targets": ["re:.*fc2"], "sparsity": 0.25}],
    )
    require_same(folder, recipe, tmp_path, samples())


@pytest.mark.parametrize("is_listed", [False, True], ids=["once", "twice in the file"])
def test_tied_head(tmp_path: Path, is_listed: bool) -> None:
    config = LlamaConfig(**FAMILIES["llama"](3).to_dict() | {"tie_word_embeddings": True})
    folder = save(model_from(config), tmp_path / "in")
    if is_listed:
        embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        edit_weights(folder, lm_head__weight=embedding.clone())
    recipe = recipe_of(method="wanda", ignore=["lm_head", "re:.*q_proj"])
    require_same(folder, recipe, tmp_path, samples())
    assert "lm_head.weight" not in index_of(tmp_path / "out")


def index_of(folder: Path) -> dict[str, str]:
    text = (folder / "model.safetensors.index.json").read_text(encoding="utf-8")
    weight_map: dict[str, str] = json.loads(text)["weight_map"]
    return weight_map


def test_gpt2_without_its_prefix_and_with_old_buffers(tmp_path: Path) -> None:
    """As the checkpoints of 2019 are."""
    folder = save(tiny_model("gpt2", 3), tmp_path / "in")
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    for block in range(3):
        tensors[f"h.{block}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    save_file(tensors, path, metadata={"format": "pt"})
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples())


def test_experts_are_read_and_written_one_by_one(tmp_path: Path) -> None:
    folder = save(tiny_model("mixtral"), tmp_path / "in", "20KB")
    before = index_of(folder)
    assert "model.layers.1.block_sparse_moe.experts.7.w2.weight" in before
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples())
    assert index_of(tmp_path / "out").keys() == before.keys()


def test_settings_of_generation_come_along(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, eos_token_id=[2, 5])
    folder = save(model, tmp_path / "in")
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples())
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.temperature, settings.eos_token_id) == (0.6, [2, 5])


def test_one_sample_through_one_block(tmp_path: Path) -> None:
    folder = save(tiny_model("llama", 1), tmp_path / "in")
    require_same(folder, recipe_of(method="wanda"), tmp_path, samples(1, 2))
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(index_of(tmp_path / "out").values()) == files
