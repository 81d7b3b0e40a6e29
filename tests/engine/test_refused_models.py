from typing import Any

import pytest
import torch
from families import model_from, tiny_model
from torch import nn
from transformers import (
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
)

from secateur import Engine, SecateurError
from secateur.modules.removed_sublayer import RemovedSublayer

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def bloom() -> PreTrainedModel:
    return model_from(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def dynamic_rope() -> PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return model_from(LlamaConfig(rope_parameters=rope, **SMALL))


def long_rope() -> PreTrainedModel:
    factors = [1.0] * 4
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 2.0,
        "original_max_position_embeddings": 32,
    }
    return model_from(Phi3Config(rope_parameters=rope, **SMALL))


def chunked() -> PreTrainedModel:
    model = tiny_model("llama")
    model.config.attention_chunk_size = 16
    return model


def other_layers() -> PreTrainedModel:
    model = model_from(Qwen3Config(head_dim=8, **SMALL))
    model.config.layer_types = ["linear_attention", "full_attention"]
    return model


def deaf_to_positions() -> PreTrainedModel:
    """Counts positions itself, from the length of what it is given."""
    model = tiny_model("gpt2")
    embed = model.transformer.wpe

    def from_zero(positions: torch.Tensor) -> Any:
        own = torch.arange(positions.shape[-1]).expand(positions.shape)
        return nn.functional.embedding(own, embed.weight * 20)

    embed.forward = from_zero
    return model


def deaf_to_masks() -> PreTrainedModel:
    """Would let every token of a prompt see all of them: its attention is not asked by name."""
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = model_from(FalconConfig(**size))
    model._supports_attention_backend = True
    return model


def deaf_to_positions_of_queries() -> PreTrainedModel:
    """Takes queries for the last of all keys, by which it knows what its window holds."""
    config = GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = model_from(config)
    for block in model.transformer.h:
        block.attn.attention.out_proj.weight.data *= 4
    return model


def failing() -> PreTrainedModel:
    model = tiny_model("llama")

    def forward(*_: Any, **__: Any) -> Any:
        raise ValueError("no such key")

    model.model.layers[1].self_attn.forward = forward
    return model


def without_entry() -> PreTrainedModel:
    model = tiny_model("llama")
    model.model.layers[1].self_attn = RemovedSublayer(32, 2)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bloom, "BloomForCausalLM cannot be served by the engine: its forward takes no position"),
        (dynamic_rope, r"its rotary positions \(dynamic\) depend on the longest sequence"),
        (long_rope, r"its rotary positions \(longrope\) depend on the longest sequence"),
        (chunked, "it attends to chunks of the text"),
        (other_layers, "it has layers of the kind linear_attention"),
        (deaf_to_positions, r"with a cache its logits are not those without \(cosine"),
        (deaf_to_positions_of_queries, r"with a cache its logits are not those without \(cosine"),
        (deaf_to_masks, "its first token sees those behind it, which change its keys by"),
        (failing, "LlamaForCausalLM cannot be served by the engine: ValueError: no such key"),
        (without_entry, "layer 1 writes nothing to the cache"),
    ],
)
def test_models_that_cannot_work_with_rows_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        Engine(make(), max_length=32)


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(SecateurError, match="expected a language model with input embeddings"):
        Engine(nn.Linear(2, 2))
