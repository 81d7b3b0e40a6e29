"""The engine with compiled steps in CUDA graphs: the tokens of the same engine without either."""

import gc
from typing import Any

import pytest
import torch
from gpu.layers import SPARSE
from torch import nn

pytest.importorskip("transformers")
from families import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from secateur import SecateurError
from secateur.engine import Engine, GenerationOptions, Result

modules = pytest.importorskip("secateur.modules")
swap = pytest.importorskip("secateur.models.swap")

PROMPTS = [[5 + length * place % 90 for place in range(length)] for length in (3, 40, 1, 17, 90)]
GREEDY = GenerationOptions(max_new_tokens=24, ignore_eos=True)
SAMPLED = GenerationOptions(
    max_new_tokens=24, temperature=0.9, top_p=0.9, seed=4, ignore_eos=True, logprobs=True
)
PENALIZED = GenerationOptions(
    max_new_tokens=24, repetition_penalty=1.3, frequency_penalty=0.3, ignore_eos=True
)
ASKED = [GREEDY, SAMPLED, PENALIZED, GREEDY, SAMPLED]


def llama(kind: str, device: torch.device) -> nn.Module:
    """Two blocks with sizes that kernels like, fp32 unless 2:4."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng([device]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(device)
        for parameter in model.parameters():
            # So that logits are far enough apart for rounding not to decide.
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    if kind == "dense":
        return model.eval()
    model = model.to(torch.bfloat16)
    for block in model.model.layers:
        for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            groups = linear.weight.data.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0.0)
    swap.convert_sparse24(model)
    return model.eval()


def tokens_of(results: list[Result]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def agreement(left: list[Result], right: list[Result]) -> float:
    """Part of the tokens that are equal until two results first differ."""
    equal = total = 0
    for one, two in zip(left, right, strict=True):
        same = [a == b for a, b in zip(one.token_ids, two.token_ids, strict=True)]
        equal += same.index(False) if False in same else len(same)
        total += len(same)
    return equal / total


@pytest.mark.parametrize(
    ("compiled", "graphs", "attention"),
    [
        (False, True, "sdpa"),
        (True, False, "sdpa"),
        (True, True, "sdpa"),
        (True, False, "flex"),
        (True, True, "flex"),
    ],
)
def test_graphs_and_compilation_change_hardly_a_token_in_fp32(
    compiled: bool, graphs: bool, attention: Any, device: torch.device
) -> None:
    model = llama("dense", device)
    plain = Engine(model, max_batch_size=4, max_length=512, compile=False, cuda_graphs=False)
    engine = Engine(
        model,
        max_batch_size=4,
        max_length=512,
        compile=compiled,
        cuda_graphs=graphs,
        attention=attention,
    )
    expected = plain.generate(PROMPTS, ASKED)
    results = engine.generate(PROMPTS, ASKED)
    # Kernels sum in other orders, which may decide a token in hundreds.
    assert agreement(results, expected) > 0.9
    assert tokens_of(engine.generate(PROMPTS, ASKED)) == tokens_of(results)
    assert agreement(engine.generate(PROMPTS[1:2], ASKED[1:2]), expected[1:2]) > 0.9


def test_the_device_and_the_cpu_choose_the_same_tokens(device: torch.device) -> None:
    model = llama("dense", device)
    on_gpu = Engine(model, max_batch_size=4, max_length=512, compile=False)
    results = on_gpu.generate(PROMPTS, ASKED)
    on_cpu = Engine(model, max_batch_size=4, max_length=512, device="cpu")
    assert agreement(results, on_cpu.generate(PROMPTS, ASKED)) > 0.9


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "opt", "gptj"])
def test_families_can_be_captured(family: str, device: torch.device) -> None:
    model = tiny_model(family).to(device)
    expected = short_results(model, cuda_graphs=False)
    assert tokens_of(short_results(model, cuda_graphs=True)) == tokens_of(expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_can_be_captured(family: str, device: torch.device) -> None:
    # In fp32 transformers reads the number of tokens of every expert, which no graph allows.
    model = tiny_model(family).to(device, torch.bfloat16)
    expected = short_results(model, cuda_graphs=False)
    # Steps of 4 rows instead of 3 may round otherwise.
    assert agreement(short_results(model, cuda_graphs=True), expected) > 0.5


def short_results(model: nn.Module, cuda_graphs: bool) -> list[Result]:
    engine = Engine(model, max_batch_size=4, max_length=64, compile=False, cuda_graphs=cuda_graphs)
    return engine.generate([prompt[:20] for prompt in PROMPTS], ASKED)


def test_packed_layers_can_be_compiled_and_captured(device: torch.device) -> None:
    model = llama(SPARSE, device)
    plain = Engine(model, max_batch_size=4, max_length=512, compile=False, cuda_graphs=False)
    engine = Engine(model, max_batch_size=4, max_length=512)
    results, expected = engine.generate(PROMPTS, ASKED), plain.generate(PROMPTS, ASKED)
    # In 16 bits fused operations round elsewhere; an error would leave hardly any token equal.
    assert agreement(results, expected) > 0.5


def test_lengths_of_several_graphs_in_one_text(device: torch.device) -> None:
    model = llama("dense", device)
    options = GenerationOptions(max_new_tokens=40, ignore_eos=True)
    prompt = [[(7 * place) % 500 for place in range(490)]]
    plain = Engine(model, max_length=1024, compile=False, cuda_graphs=False)
    engine = Engine(model, max_length=1024, compile=False)
    assert tokens_of(engine.generate(prompt, options)) == tokens_of(plain.generate(prompt, options))


def test_requests_that_join_and_leave_do_not_disturb_others(device: torch.device) -> None:
    engine = Engine(llama("dense", device), max_batch_size=4, max_length=512, compile=False)
    alone = [
        engine.generate([prompt], each)[0] for prompt, each in zip(PROMPTS, ASKED, strict=True)
    ]
    ids: dict[int, int] = {}
    results: dict[int, Any] = {}
    steps = 0
    while len(ids) < 15 or engine.has_work:
        if len(ids) < 15 and steps % 3 == 0:
            index = len(ids) % len(PROMPTS)
            ids[engine.submit(PROMPTS[index], ASKED[index])] = index
        if steps == 10:
            engine.cancel(min(ids))
        for piece in engine.step():
            if piece.result is not None:
                results[ids[piece.request_id], piece.request_id] = piece.result
        steps += 1
    assert len(results) == 15
    for (index, _), result in results.items():
        assert result.token_ids == alone[index].token_ids[: len(result.token_ids)]
        assert result.finish_reason == "cancelled" or len(result.token_ids) == 24


def test_graphs_read_nothing_that_was_given_back(device: torch.device) -> None:
    model = llama("dense", device)
    plain = Engine(model, max_batch_size=4, max_length=512, compile=False, cuda_graphs=False)
    expected = plain.generate(PROMPTS, ASKED)
    engine = Engine(model, max_batch_size=4, max_length=512, compile=False)
    engine.warm_up(options=[GREEDY, SAMPLED])
    gc.collect()
    torch.cuda.empty_cache()
    # Whatever a graph should have kept lies here now, and is no index of a row.
    junk = [torch.full((1 << 17,), 1 << 40, device=device) for _ in range(64)]
    junk += [torch.full((size,), 1 << 40, device=device) for size in range(1, 64)]
    assert tokens_of(engine.generate(PROMPTS, ASKED)) == tokens_of(expected)
    assert all(bool((one == 1 << 40).all()) for one in junk)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_model_may_be_on_any_gpu() -> None:
    other = torch.device("cuda", torch.cuda.device_count() - 1)
    engine = Engine(llama("dense", other), max_batch_size=4, max_length=512, compile=False)
    plain = Engine(llama("dense", torch.device("cuda", 0)), max_batch_size=4, max_length=512)
    results = engine.generate(PROMPTS, ASKED)
    assert agreement(results, plain.generate(PROMPTS, ASKED)) > 0.9
    assert torch.cuda.current_device() == 0


def test_a_step_does_not_wait_for_the_device(device: torch.device) -> None:
    engine = Engine(llama("dense", device), max_batch_size=2, max_length=512, compile=False)
    engine.warm_up(options=[GREEDY, SAMPLED])
    # Memory for all of what follows.
    engine.generate([[1, 2, 3], [4, 5, 6]], [GREEDY, SAMPLED])
    engine.submit([1, 2, 3], GREEDY)
    engine.step()
    engine.step()
    torch.cuda.synchronize()
    # The device is busy for a while; what is awaited was launched before.
    with torch.cuda.device(device):
        torch.cuda._sleep(10**9)
        event = torch.cuda.Event()
        event.record()
    engine.submit([4, 5, 6], SAMPLED)
    engine.step()
    engine.step()
    assert engine.num_running == 2
    assert not event.query()
    while engine.has_work:
        engine.step()


def test_flex_attention_is_refused_where_a_model_has_its_own(device: torch.device) -> None:
    model = tiny_model("gptj").to(device)
    with pytest.raises(SecateurError, match="for flex attention, but GPTJForCausalLM has its own"):
        Engine(model, compile=True, attention="flex")
