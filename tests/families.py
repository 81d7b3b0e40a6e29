"""Tiny random models of the families that the tests run on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 128
SLIDING_WINDOW = 8

_TOKENS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA_LIKE = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_experts": 8}


def _llama_like(
    config_class: type[PreTrainedConfig], **more: Any
) -> Callable[[int], PreTrainedConfig]:
    return lambda num_blocks: config_class(num_hidden_layers=num_blocks, **_LLAMA_LIKE, **more)


def _qwen2(num_blocks: int) -> PreTrainedConfig:
    """Full attention in the first half of the blocks, a sliding window in the second."""
    return Qwen2Config(
        num_hidden_layers=num_blocks,
        use_sliding_window=True,
        sliding_window=SLIDING_WINDOW,
        max_window_layers=num_blocks // 2,
        **_LLAMA_LIKE,
    )


def _gpt2(num_blocks: int) -> PreTrainedConfig:
    return GPT2Config(n_layer=num_blocks, n_embd=32, n_head=4, n_positions=128, **_TOKENS)


def _gptj(num_blocks: int) -> PreTrainedConfig:
    return GPTJConfig(
        n_layer=num_blocks, n_embd=32, n_head=4, n_positions=128, rotary_dim=4, **_TOKENS
    )


def _gpt_neox(num_blocks: int) -> PreTrainedConfig:
    return GPTNeoXConfig(
        num_hidden_layers=num_blocks,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        max_position_embeddings=128,
        **_TOKENS,
    )


def _opt(num_blocks: int) -> PreTrainedConfig:
    return OPTConfig(
        num_hidden_layers=num_blocks,
        hidden_size=32,
        ffn_dim=64,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        **_TOKENS,
    )


def _falcon(num_blocks: int, **more: Any) -> PreTrainedConfig:
    return FalconConfig(
        num_hidden_layers=num_blocks, hidden_size=32, num_attention_heads=4, **_TOKENS, **more
    )


FAMILIES: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama": _llama_like(LlamaConfig),
    "mistral": _llama_like(MistralConfig, sliding_window=SLIDING_WINDOW),
    "qwen2": _qwen2,
    "qwen3": _llama_like(Qwen3Config),
    "gemma3": _llama_like(Gemma3TextConfig, sliding_window=SLIDING_WINDOW),
    "phi3": _llama_like(Phi3Config),
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "mixtral": _llama_like(MixtralConfig, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": _llama_like(Qwen3MoeConfig, decoder_sparse_step=2, **_EXPERTS),
    "qwen3_moe_listed": _llama_like(Qwen3MoeConfig, mlp_only_layers=[1], **_EXPERTS),
}
"""Family -> number of blocks -> configuration.

`qwen3_moe` has experts in every second block; `qwen3_moe_listed` in every block but block 1. Every
sixth block of `gemma3` sees everything, the others a sliding window."""

MOST_DIFFERENT = ("llama", "gemma3", "phi3", "gpt2", "opt", "gptj", "mixtral", "qwen3_moe_listed")
"""What takes long is tried with these by default, with all of them thoroughly."""

TURNED_EXPERTS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama4": _llama_like(
        Llama4TextConfig,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        intermediate_size_mlp=64,
        attention_chunk_size=SLIDING_WINDOW,
    ),
    "gpt_oss": _llama_like(
        GptOssConfig,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}
"""Four experts a block, stored [experts, K, N]: `gate_up_proj` and `down_proj`.

`llama4` gives every expert all tokens, those of others as zeros; `gpt_oss` has biases, and gate and
up column by column in turn."""


OWN_LINEARS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "falcon": partial(_falcon, bias=True),
    "falcon_new": partial(_falcon, new_decoder_architecture=True, num_kv_heads=2),
}
"""Linear layers of a class of their own; in `falcon` attention and MLP have one input."""


def gemma4(num_blocks: int = 4) -> PreTrainedConfig:
    """The second half of the blocks attends to keys and values of the first."""
    return Gemma4TextConfig(
        num_hidden_layers=num_blocks,
        num_kv_shared_layers=num_blocks // 2,
        layer_types=["sliding_attention", "full_attention"] * (num_blocks // 2),
        sliding_window=SLIDING_WINDOW,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        **_LLAMA_LIKE,
    )


def tiny_model(name: str, num_blocks: int = 2, seed: int = 0) -> PreTrainedModel:
    """A model of one of the families: random weights by `seed` alone, fp32, eval mode."""
    return model_from((FAMILIES | TURNED_EXPERTS | OWN_LINEARS)[name](num_blocks), seed)


def model_from(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A causal language model of any configuration, as `tiny_model` makes it.

    Every parameter gets noise, so that no norm is one and no bias zero, and logits differ enough
    from token to token for greedy decoding to be worth comparing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
