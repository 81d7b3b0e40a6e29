"""Greedy tokens of the engine are those of transformers' own generate."""

import pytest
import torch
from families import FAMILIES, gemma4, model_from, tiny_model
from thoroughness import most_telling
from transformers import FalconConfig, Gemma2Config, PreTrainedModel

from secateur import accelerate
from secateur.engine import Engine, GenerationOptions
from secateur.models.swap import convert_sparse24
from secateur.modules import LowRankLinear
from secateur.modules.removed_sublayer import RemovedSublayer

COMPILER = "secateur.engine.fused_residuals.COMPILER"
"""What compiles blocks: set to one that leaves out the code for them, which takes long to make."""

PROMPT_LENGTHS = (3, 21, 1, 12)


def prompts(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, 128, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]


def generated(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def gemma2() -> PreTrainedModel:
    """Caps its scores, which torch's attention cannot, and alternates two kinds of layers."""
    return model_from(
        Gemma2Config(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=8,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=5.0,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def falcon() -> PreTrainedModel:
    """Can do SDPA, but by itself: it never asks for attention by name."""
    return model_from(
        FalconConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


OTHERS = {
    "falcon": falcon,
    "gemma2": gemma2,
    # Sinks beside the tokens, which torch's attention does not have either.
    "gpt_oss": lambda: tiny_model("gpt_oss", 3),
    # Two layers keep nothing, and attend to what the two before them keep.
    "gemma4": lambda: model_from(gemma4()),
}


@pytest.mark.parametrize("family", [*sorted(FAMILIES), *OTHERS])
def test_batches_of_different_lengths_are_what_transformers_generates(family: str) -> None:
    # The sixth block of gemma3 is the first to see everything.
    num_blocks = 7 if family == "gemma3" else 3
    model = OTHERS[family]() if family in OTHERS else tiny_model(family, num_blocks)
    engine = Engine(model, max_batch_size=3, max_length=64, prefill_chunk=8)
    expected = [generated(model, prompt, 14) for prompt in prompts()]
    results = engine.generate(prompts(), GenerationOptions(max_new_tokens=14))
    assert [list(result.token_ids) for result in results] == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "llama"])
def test_the_whole_context_can_be_used_beside_shorter_texts(family: str) -> None:
    # Some families look positions up in a table that ends with the context.
    model = tiny_model(family)
    engine = Engine(model, max_batch_size=3)
    whole = [5] * (engine.max_length - 9)
    results = engine.generate([whole, [5, 6, 7], [5, 6]], GenerationOptions(9, ignore_eos=True))
    assert [len(result.token_ids) for result in results] == [9, 9, 9]
    alone = Engine(model, max_batch_size=1).generate([whole], GenerationOptions(9, ignore_eos=True))
    assert results[0].token_ids == alone[0].token_ids


def test_the_model_keeps_its_own_attention() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    Engine(model, max_length=32).generate([[5, 6]], GenerationOptions(max_new_tokens=2))
    assert model.config._attn_implementation == before


def test_models_with_removed_attention_keep_nothing_for_it() -> None:
    model = tiny_model("llama", num_blocks=4)
    whole = Engine(model, max_batch_size=3, max_length=64).cache_bytes
    for index in (0, 2):
        model.model.layers[index].self_attn = RemovedSublayer(32, 2, layer_idx=index)
    model.model.layers[3].mlp = RemovedSublayer(32)
    engine = Engine(model, max_batch_size=3, max_length=64, prefill_chunk=8)
    expected = [generated(model, prompt, 9) for prompt in prompts()]
    results = engine.generate(prompts(), GenerationOptions(max_new_tokens=9))
    assert [list(result.token_ids) for result in results] == expected
    # Keys and values of two layers: three rows, 64 positions rounded up and 8 that are never read,
    # two heads of 8, fp32.
    assert engine.cache_bytes == whole // 2 == 2 * 2 * (3 * (128 + 8) * 2 * 8) * 4


def test_models_with_shared_keys_and_values_keep_them_once() -> None:
    half, whole = model_from(gemma4(4)), tiny_model("llama", num_blocks=4)
    sizes = [Engine(m, max_batch_size=3, max_length=64).cache_bytes for m in (half, whole)]
    assert 2 * sizes[0] == sizes[1]


def compressed(num_blocks: int) -> PreTrainedModel:
    """Queries of rank 20, an MLP that is 2:4 and packed."""
    model = tiny_model("llama", num_blocks)
    for block in model.model.layers:
        block.self_attn.q_proj = LowRankLinear.from_linear(block.self_attn.q_proj, 20)
        for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            groups = linear.weight.data.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0.0)
    assert len(convert_sparse24(model)) == 3 * num_blocks
    return model


def test_compressed_layers_run_as_they_are() -> None:
    model = compressed(3)
    expected = [generated(model, prompt, 9) for prompt in prompts()]
    engine = Engine(model, max_batch_size=3, max_length=64, prefill_chunk=8)
    results = engine.generate(prompts(), GenerationOptions(max_new_tokens=9))
    assert [list(result.token_ids) for result in results] == expected


def same_when_compiled(model: PreTrainedModel, flex: bool = False) -> None:
    options = [
        GenerationOptions(6, logprobs=True),
        GenerationOptions(5, temperature=0.7, top_p=0.8, seed=1, presence_penalty=0.5),
    ]
    expected = Engine(model, max_batch_size=2, max_length=64).generate(prompts()[:2], options)
    engine = Engine(model, max_batch_size=2, max_length=64, compile=True)
    engine._decode._flex = flex
    results = engine.generate(prompts()[:2], options)
    assert [result.token_ids for result in results] == [one.token_ids for one in expected]


@pytest.mark.compiled
@pytest.mark.parametrize(
    "family", most_telling(list(FAMILIES), ["gemma3", "gptj", "opt", "mixtral"])
)
def test_parts_are_one_graph_each_that_writes_in_place(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(COMPILER, "aot_eager")
    torch.compiler.reset()
    # The sixth block of gemma3 is the first to see everything.
    same_when_compiled(tiny_model(family, num_blocks=7 if family == "gemma3" else 2))


@pytest.mark.compiled
def test_compressed_layers_are_in_their_blocks_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(COMPILER, "aot_eager")
    torch.compiler.reset()
    model = compressed(2)
    model.model.layers[0].self_attn = RemovedSublayer(32, 2, layer_idx=0)
    same_when_compiled(model)


def test_accelerated_models_give_the_same_tokens() -> None:
    model = tiny_model("qwen3")
    options = GenerationOptions(max_new_tokens=9)
    expected = Engine(model, max_batch_size=3, max_length=64).generate(prompts(), options)
    accelerate(model, force=True)
    results = Engine(model, max_batch_size=3, max_length=64).generate(prompts(), options)
    assert [result.token_ids for result in results] == [one.token_ids for one in expected]


@pytest.mark.compiled
def test_accelerated_layers_are_in_their_blocks_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(COMPILER, "aot_eager")
    torch.compiler.reset()
    model = tiny_model("llama", num_blocks=1)
    accelerate(model, force=True)
    same_when_compiled(model)


@pytest.mark.compiled
def test_flex_attention_is_in_the_blocks_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMPILER, "aot_eager")
    torch.compiler.reset()
    # Two kinds of layers, so that the steps get two masks. Its fast code is for GPUs.
    same_when_compiled(tiny_model("qwen2", num_blocks=2), flex=True)


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_steps_give_the_same_tokens() -> None:
    torch.compiler.reset()
    same_when_compiled(tiny_model("llama", num_blocks=1))
