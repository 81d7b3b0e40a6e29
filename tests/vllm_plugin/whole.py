"""Small models of all kinds of layers, and what vLLM's own engine makes of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from families import VOCAB_SIZE, model_from
from integrations.compact_models import dense_sites, in_dtype, make_both, make_low_rank, random_mask
from torch import Tensor
from transformers import (
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from vllm import LLM, SamplingParams

from secateur.compress import compress_with_report
from secateur.integrations.transformers_quantizer import mark_compressed
from secateur.models.swap import (
    compressed_modules,
    convert_sparse24,
    pack_layers,
    to_dense,
    unpack_layers,
)

# What vLLM's attention can do on a CPU begins at heads of 32.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": partial(Qwen3MoeConfig, **EXPERTS, norm_topk_prob=True),
}
IDS = (torch.arange(1, 40) * 37 % VOCAB_SIZE).tolist()


def small_model(family: str, seed: int = 0) -> PreTrainedModel:
    """2:4, factors, both and dense in turn, and one attention removed."""
    model = in_dtype(model_from(CONFIGS[family](**SIZES), seed), torch.bfloat16)
    drop = {"stage": "drop_blocks", "granularity": "attention", "blocks": [2]}
    compress_with_report(model, {"stages": [drop]}, checkpoint_format="compact")
    generator = torch.Generator().manual_seed(seed)
    sites = dense_sites(model)
    for index, site in enumerate(sites):
        if index % 4 == 0:
            make_low_rank(model, site)
        elif index % 4 == 1:
            make_both(model, site)
        elif index % 4 == 2:
            with torch.no_grad():
                site.weight.masked_fill_(~random_mask(site.shape, generator), 0.0)
    convert_sparse24(model)
    pack_layers(model)
    mark_compressed(model)
    return model


@torch.no_grad()
def log_probs(model: PreTrainedModel) -> Tensor:
    """[tokens - 1, vocabulary] by transformers."""
    logits: Tensor = model(input_ids=torch.tensor([IDS]), use_cache=False).logits
    return logits[0, :-1].double().log_softmax(dim=-1)


def as_dense(model: PreTrainedModel) -> PreTrainedModel:
    """The same in single precision, of dense layers."""
    dense = deepcopy(model)
    unpack_layers(dense)
    dense.float()
    to_dense(dense, compressed_modules(dense))
    return dense


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[LLM]:
    """vLLM's engine in this process, with a worker as vLLM starts it."""
    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_logprobs=VOCAB_SIZE,
        **{"enforce_eager": True, **options},
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def vllm_log_probs(llm: LLM, **options: Any) -> Tensor:
    """[tokens - 1, vocabulary] by vLLM."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=VOCAB_SIZE, detokenize=False)
    (answer,) = llm.generate({"prompt_token_ids": IDS}, params, use_tqdm=False, **options)
    rows = [
        [entries[token].logprob for token in range(VOCAB_SIZE)]
        for entries in answer.prompt_logprobs[1:]
    ]
    return torch.tensor(rows, dtype=torch.float64)
