"""vLLM's engine from the folder to log-probabilities: its loader, models, attention and worker."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from integrations.compact_models import saved
from safetensors.torch import save_file
from torch import Tensor, nn
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm_plugin.whole import IDS, as_dense, engine, log_probs, small_model, vllm_log_probs

pytestmark = pytest.mark.skipif(
    current_platform.is_unspecified(), reason="this vLLM was built for no device that is here"
)
LORA_RANK = 8
COUNTED = ("draft", "accepted")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()


def of_most_tokens(difference: Tensor) -> float:
    """The median over tokens, in their order: one that is near to the border of two experts may go
    to the other by rounding, which differs between processors, and its answer with it."""
    return difference.square().mean(dim=1).sqrt().median().item()


def assert_as_good(served: Tensor, by_transformers: Tensor, exact: Tensor) -> None:
    """Both round to 16 bits at much the same places, so both are about as far from the truth."""
    assert rms(served - exact) < 2 * rms(by_transformers - exact)


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("qwen2", {"enforce_eager": False}), ("qwen3", {"tensor_parallel_size": 2})],
)
def test_whole_models_say_what_transformers_says(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    models = [small_model(family, seed) for seed in (0, 1)]
    folders = [saved(model, tmp_path / str(i)) for i, model in enumerate(models)]
    with engine(folders[0], **options) as llm:
        answers = [vllm_log_probs(llm)]
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folders[1])})
        llm.reset_prefix_cache()
        answers.append(vllm_log_probs(llm))
    for model, answer in zip(models, answers, strict=True):
        assert_as_good(answer, log_probs(model), log_probs(as_dense(model)))


def test_a_benchmark_needs_no_weights_and_they_can_come_later(tmp_path: Path) -> None:
    model = small_model("llama")
    folder = saved(model, tmp_path / "model")
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "empty")
    with engine(tmp_path / "empty", load_format="dummy") as llm:
        made_up = vllm_log_probs(llm)
        llm.collective_rpc("update_config", args=({"load_config": {"load_format": "auto"}},))
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        llm.reset_prefix_cache()
        answer = vllm_log_probs(llm)
    assert made_up.isfinite().all()
    assert_as_good(answer, log_probs(model), log_probs(as_dense(model)))


def test_experts_stay_vllms_own_beside_compressed_layers(tmp_path: Path) -> None:
    model = small_model("qwen3_moe")
    exact = log_probs(as_dense(model))
    with engine(saved(model, tmp_path)) as llm:
        answer = vllm_log_probs(llm)
        with pytest.warns(UserWarning, match="experts for the CPU"):
            llm.collective_rpc("reload_weights")
        llm.reset_prefix_cache()
        answer_after_reload = vllm_log_probs(llm)
    by_transformers = of_most_tokens(log_probs(model) - exact)
    assert of_most_tokens(answer - exact) < 2 * by_transformers
    # Once vLLM packs experts again, the warning can go.
    assert of_most_tokens(answer_after_reload - exact) > 10 * by_transformers


def add_adapter(model: nn.Module, folder: Path) -> None:
    """Random LoRA on every linear layer of the blocks, written and merged into the model."""
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    for name, module in layers.items():
        rows, columns = module.weight.shape
        a = (0.05 * torch.randn(LORA_RANK, columns, generator=generator)).bfloat16()
        b = (0.05 * torch.randn(rows, LORA_RANK, generator=generator)).bfloat16()
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        module.weight.data += b.to(module.weight) @ a.to(module.weight)
    config = {
        "peft_type": "LORA",
        "r": LORA_RANK,
        "lora_alpha": LORA_RANK,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_adapters_work_on_layers_of_every_kind(tmp_path: Path) -> None:
    model = small_model("llama")
    adapted = as_dense(model)
    add_adapter(adapted, tmp_path / "adapter")
    plain, exact = log_probs(as_dense(model)), log_probs(adapted)
    with engine(saved(model, tmp_path / "model"), enable_lora=True) as llm:
        answer = vllm_log_probs(
            llm, lora_request=LoRARequest("adapter", 1, str(tmp_path / "adapter"))
        )
    noise = rms(log_probs(model) - plain)
    assert rms(exact - plain) > 10 * noise
    assert rms(answer - exact) < 2 * noise


def test_a_compressed_model_drafts_for_its_dense_one(tmp_path: Path) -> None:
    model = small_model("llama")
    as_dense(model).bfloat16().save_pretrained(tmp_path / "dense")
    draft = {
        "model": str(saved(model, tmp_path / "compact")),
        "method": "draft_model",
        "num_speculative_tokens": 2,
    }
    with engine(tmp_path / "dense", speculative_config=draft, disable_log_stats=False) as llm:
        params = SamplingParams(max_tokens=12, temperature=0, detokenize=False, ignore_eos=True)
        llm.generate({"prompt_token_ids": IDS[:8]}, params, use_tqdm=False)
        counted = {metric.name: metric for metric in llm.get_metrics()}
    drafted, accepted = (counted[f"vllm:spec_decode_num_{n}_tokens"].value for n in COUNTED)
    # Only rounding tells them apart: most of what one says the other takes.
    assert drafted >= 8
    assert accepted > drafted / 2
