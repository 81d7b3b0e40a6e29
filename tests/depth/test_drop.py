from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MOST_DIFFERENT, model_from, tiny_model
from thoroughness import most_telling
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CTRLConfig,
    DiffLlamaConfig,
    Gemma2Config,
    Gemma3Config,
    GPTNeoConfig,
    GptOssConfig,
    JambaConfig,
    MiniCPM3Config,
    PreTrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
)

from secateur.depth.drop import drop_blocks
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks, text_config

NUM_BLOCKS = 6
DROPS = [(1,), (0, 5)]

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MORE_FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma2": lambda: Gemma2Config(num_hidden_layers=6, sliding_window=8, **SIZES),
    "gpt_neo": lambda: GPTNeoConfig(
        num_layers=6,
        num_heads=4,
        attention_types=[[["global", "local"], 3]],
        window_size=8,
        **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "bos_token_id")},
        eos_token_id=2,
    ),
    "gpt_oss": lambda: GptOssConfig(
        num_hidden_layers=6, num_local_experts=4, sliding_window=8, **SIZES
    ),
    "smollm3": lambda: SmolLM3Config(num_hidden_layers=6, **SIZES),
    "minicpm3": lambda: MiniCPM3Config(
        num_hidden_layers=6,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        **{name: SIZES[name] for name in SIZES if name not in ("head_dim", "num_key_value_heads")},
        num_key_value_heads=4,
    ),
    "diffllama": lambda: DiffLlamaConfig(num_hidden_layers=6, **SIZES),
    "ctrl": lambda: CTRLConfig(n_layer=6, n_embd=32, n_head=4, dff=64, vocab_size=128),
}


def tokens(length: int = 20) -> Tensor:
    return torch.randint(3, 128, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens()).logits


def save_and_load(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def greedy(model: PreTrainedModel, use_cache: bool) -> list[list[int]]:
    # The prompt is longer than the sliding windows, so that a cache of the wrong kind shows.
    return model.generate(
        input_ids=tokens(12),
        attention_mask=torch.ones(2, 12, dtype=torch.int64),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=use_cache,
    ).tolist()


def by_hand(family: str, kept: tuple[int, ...]) -> PreTrainedModel:
    """A model made small from the start, with the kept blocks' weights under their new names."""
    big = tiny_model(family, NUM_BLOCKS)
    small = model_from(hand_made_config(family, big.config, kept), seed=1)
    prefix = f"{find_blocks(big).name}."
    state = {}
    for name, tensor in big.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        index, rest = name.removeprefix(prefix).split(".", 1)
        if int(index) in kept:
            state[f"{prefix}{kept.index(int(index))}.{rest}"] = tensor
    small.load_state_dict(state)
    return small


def hand_made_config(family: str, big: Any, kept: tuple[int, ...]) -> PreTrainedConfig:
    config: Any = FAMILIES[family](len(kept))
    if hasattr(config, "layer_types"):
        config.layer_types = [big.layer_types[index] for index in kept]
    if family == "qwen3_moe":
        config.decoder_sparse_step = 1
        config.mlp_only_layers = [new for new, old in enumerate(kept) if old % 2 == 0]
    if family == "qwen3_moe_listed":
        config.mlp_only_layers = [new for new, old in enumerate(kept) if old == 1]
    return config


# The tiny models themselves.


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_depend_on_their_seed_alone(family: str) -> None:
    first, again, other = (tiny_model(family, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert not first.training
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}


# Families.


@pytest.mark.parametrize("dropped", DROPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_model_equals_one_made_by_hand(family: str, dropped: tuple[int, ...]) -> None:
    model = tiny_model(family, NUM_BLOCKS)
    outcome = drop_blocks(model, find_blocks(model), dropped)
    assert torch.equal(logits(model), logits(by_hand(family, outcome.kept)))


@pytest.mark.parametrize("dropped", DROPS)
@pytest.mark.parametrize("family", most_telling(list(FAMILIES), MOST_DIFFERENT))
def test_reloaded_model_is_the_same(family: str, dropped: tuple[int, ...], tmp_path: Path) -> None:
    model = tiny_model(family, NUM_BLOCKS)
    before = logits(model)
    drop_blocks(model, find_blocks(model), dropped)
    loaded = save_and_load(model, tmp_path)
    assert len(find_blocks(loaded)) == NUM_BLOCKS - len(dropped)
    assert torch.equal(logits(model), logits(loaded))
    assert not torch.allclose(before, logits(model))
    texts = [greedy(either, cached) for either in (model, loaded) for cached in (True, False)]
    assert texts == [texts[0]] * 4


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_families_with_rules_of_their_own(family: str, tmp_path: Path) -> None:
    model = model_from(MORE_FAMILIES[family]())
    drop_blocks(model, find_blocks(model), [1])
    loaded = save_and_load(model, tmp_path)
    assert torch.equal(logits(model), logits(loaded))
    assert greedy(model, use_cache=True) == greedy(loaded, use_cache=True)


def test_jamba_loses_whole_periods(tmp_path: Path) -> None:
    config = JambaConfig(
        num_hidden_layers=8,
        attn_layer_period=4,
        attn_layer_offset=2,
        num_experts=4,
        use_mamba_kernels=False,
        **{name: SIZES[name] for name in SIZES if name != "head_dim"},
    )
    model = model_from(config)
    with pytest.raises(SecateurError, match="or 4 neighbouring blocks together"):
        drop_blocks(model, find_blocks(model), [1])
    drop_blocks(model, find_blocks(model), [1, 2, 3, 4])
    assert torch.equal(logits(model), logits(save_and_load(model, tmp_path)))


def test_nested_text_configuration_is_edited() -> None:
    text = FAMILIES["gemma3"](NUM_BLOCKS).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    outcome = drop_blocks(model, find_blocks(model), [1])
    assert outcome.blocks.name == find_blocks(model).name
    assert len(find_blocks(model)) == text_config(model).num_hidden_layers == 5
    assert model.config.vision_config.num_hidden_layers == 6


# What is changed and what is not.


def test_kept_blocks_are_the_same_modules() -> None:
    model = tiny_model("llama", 4)
    blocks = find_blocks(model)
    before = list(blocks.modules)
    outcome = drop_blocks(model, blocks, [2])
    assert outcome.kept == (0, 1, 3)
    assert outcome.blocks.name == "model.layers"
    assert outcome.blocks.modules is model.model.layers
    assert all(
        block is before[index] for block, index in zip(model.model.layers, (0, 1, 3), strict=True)
    )
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2]


def test_blocks_can_be_dropped_again(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", NUM_BLOCKS)
    first = drop_blocks(model, find_blocks(model), [1])
    drop_blocks(model, first.blocks, [0, 3])
    again = tiny_model("qwen3_moe", NUM_BLOCKS)
    drop_blocks(again, find_blocks(again), [0, 1, 4])
    assert torch.equal(logits(model), logits(again))
    assert torch.equal(logits(model), logits(save_and_load(model, tmp_path)))


def test_nothing_dropped_changes_nothing() -> None:
    model = tiny_model("gemma3", 3)
    blocks = find_blocks(model)
    outcome = drop_blocks(model, blocks, [])
    assert (outcome.blocks, outcome.kept, outcome.warnings) == (blocks, (0, 1, 2), ())


def test_random_state_is_left_alone() -> None:
    model = tiny_model("llama", 3)
    state = torch.get_rng_state()
    drop_blocks(model, find_blocks(model), [1])
    assert torch.equal(torch.get_rng_state(), state)


def test_first_and_last_block_are_missed() -> None:
    model = tiny_model("llama", 4)
    first, last = drop_blocks(model, find_blocks(model), [0, 3]).warnings
    assert first.startswith("block 0 was dropped")
    assert last.startswith("the last block, 3, was dropped")


def test_configuration_warnings_are_passed_on() -> None:
    model = tiny_model("gemma3", NUM_BLOCKS)
    (warning,) = drop_blocks(model, find_blocks(model), [1]).warnings
    assert "_sliding_window_pattern" in warning


def test_scale_by_depth_is_taken_over_with_a_warning(tmp_path: Path) -> None:
    config = FAMILIES["gpt2"](4)
    config.scale_attn_by_inverse_layer_idx = True
    model = model_from(config)
    (warning,) = drop_blocks(model, find_blocks(model), [1]).warnings
    assert warning.startswith("attn.scaling depends on how many blocks come before")
    assert torch.equal(logits(model), logits(save_and_load(model, tmp_path)))


def test_modules_around_the_blocks_count_them_too() -> None:
    model = model_from(MORE_FAMILIES["ctrl"]())
    drop_blocks(model, find_blocks(model), [1])
    assert model.transformer.num_layers == 5


# Errors: the model is as it was.


@pytest.mark.parametrize("dropped", [[4], [1, 1], [0, 1, 2, 3], [-1]])
def test_refuses_wrong_indices(dropped: list[int]) -> None:
    model = tiny_model("llama", 4)
    with pytest.raises(SecateurError, match="expected"):
        drop_blocks(model, find_blocks(model), dropped)
    assert len(find_blocks(model)) == model.config.num_hidden_layers == 4
