"""The bundled model: what each method costs in quality and memory, on text that it knows."""

import gc
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from families import model_from
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from secateur.calibration.data import load_calibration
from secateur.compress import compress, compress_with_report
from secateur.evaluate.perplexity import PerplexityResult, encode_text, perplexity
from secateur.progress import SilentProgress
from secateur.recipe import Method, PruneStage, Recipe
from secateur.report.record import PruneRecord

BOOKS = Path(__file__).parents[1] / "examples" / "books-8m"
WINDOW = 128


@cache
def calibration() -> Tensor:
    """int64 [16, 128]."""
    tokens = load_calibration(
        BOOKS / "calibration.txt",
        AutoTokenizer.from_pretrained(BOOKS),
        num_samples=16,
        max_seq_length=WINDOW,
    )
    return torch.stack(tokens.samples)


@cache
def evaluation() -> Tensor:
    """The first 8 windows."""
    text = (BOOKS / "evaluation.txt").read_text(encoding="utf-8")
    return encode_text(AutoTokenizer.from_pretrained(BOOKS), text)[: 8 * WINDOW]


def dense() -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(BOOKS, dtype=torch.float32).eval()
    return model


def pruned(method: Method, pattern: str) -> nn.Module:
    recipe = Recipe(stages=(PruneStage(method=method, pattern=pattern),))
    return compress(dense(), recipe, calibration=calibration())


@cache
def measured(method: Method | None, pattern: str = "2:4") -> PerplexityResult:
    model = dense() if method is None else pruned(method, pattern)
    return perplexity(model, evaluation(), WINDOW)


def test_windows_are_those_that_were_meant() -> None:
    result = measured(None)
    assert len(result.window_losses) == 8
    assert (result.num_tokens, result.max_seq_length) == (8 * (WINDOW - 1), WINDOW)
    assert calibration().shape == (16, WINDOW)


def test_better_methods_lose_less() -> None:
    """dense < SparseGPT < Wanda < magnitude, each by a clear margin."""
    results = [measured(method) for method in (None, "sparsegpt", "wanda", "magnitude")]
    for better, worse in pairwise(results):
        assert better.perplexity * 1.03 < worse.perplexity
    # Pruned, not destroyed: a model that knows nothing of 8192 tokens is at 8192.
    assert results[0].perplexity < 60
    assert results[2].perplexity < 4 * results[0].perplexity


def test_a_wider_group_loses_less() -> None:
    """4:8 leaves more choice than 2:4."""
    assert measured(None).perplexity < measured("wanda", "4:8").perplexity
    assert measured("wanda", "4:8").perplexity < measured("wanda", "2:4").perplexity


def test_losses_agree_with_plain_pytorch() -> None:
    model = pruned("wanda", "2:4")
    windows = evaluation().view(8, WINDOW)
    with torch.no_grad():
        logits = model(input_ids=windows, use_cache=False).logits
    losses = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
    )
    expected = float(losses.double().mean().exp())
    assert measured("wanda").perplexity == pytest.approx(expected, rel=1e-5)


def test_reported_errors_order_the_methods_too() -> None:
    means = []
    for method in ("sparsegpt", "wanda", "magnitude"):
        recipe = {"stages": [{"stage": "prune", "method": method, "pattern": "2:4"}]}
        _, report = compress_with_report(dense(), recipe, calibration=calibration()[:4])
        (record,) = report.stages
        assert isinstance(record, PruneRecord)
        assert len(record.layers) == 8 * 7
        errors = [layer.output_error for layer in record.layers]
        means.append(sum(error for error in errors if error is not None) / len(errors))
        blocks = [block.output_error for block in record.blocks]
        assert all(error is not None and 0 < error < 1 for error in blocks)
    assert means[0] < means[1] < means[2]


def tensors_alive() -> int:
    """Bytes of all tensors made since objects were frozen, each storage once."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if issubclass(type(value), Tensor) and value.device.type == "cpu":
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture
def frozen_objects() -> Iterator[None]:
    """What is there already is not looked at, which takes time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class MemoryWatch(SilentProgress):
    """Looks at the memory each time a block has its first matrix pruned."""

    def __init__(self) -> None:
        self.by_block: dict[str, int] = {}

    def advance(self, detail: str = "") -> None:
        block = " ".join(detail.split()[:2])
        if block.startswith("block ") and block not in self.by_block:
            self.by_block[block] = tensors_alive()


@pytest.mark.usefixtures("frozen_objects")
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_memory_is_the_same_in_every_block_and_none_is_kept(method: Method) -> None:
    model = model_from(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_hidden_layers=6,
            max_position_embeddings=256,
        )
    )
    ids = torch.randint(3, 64, (32, 128))
    watch = MemoryWatch()
    recipe = Recipe(stages=(PruneStage(method=method, pattern="2:4"),))
    before = tensors_alive()
    compress(model, recipe, calibration=ids, progress=watch)
    copy_of_activations = ids.numel() * 64 * 4
    assert list(watch.by_block) == [f"block {index}" for index in range(6)]
    # Two buffers, whatever the number of blocks; the rest are statistics and one matrix.
    sizes = list(watch.by_block.values())
    assert max(sizes) - min(sizes) < copy_of_activations / 4
    assert 2 * copy_of_activations <= max(sizes) - before < 4 * copy_of_activations
    assert tensors_alive() - before < copy_of_activations / 4
