import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.errors import SecateurError
from secateur.evaluate.perplexity import encode_text, perplexity

TOKENS = torch.randint(288, (101,), generator=torch.Generator().manual_seed(5))


def reference_losses(model: nn.Module, token_ids: Tensor, length: int) -> list[float]:
    """Mean loss of each window, one prediction after the other, in float64."""
    losses = []
    for start in range(0, len(token_ids) - length + 1, length):
        window = token_ids[start : start + length]
        with torch.no_grad():
            logits = model(window.unsqueeze(0)).logits[0].double()
        total = 0.0
        for position in range(length - 1):
            row = logits[position]
            total -= float(row[window[position + 1]] - row.exp().sum().log())
        losses.append(total / (length - 1))
    return losses


@pytest.mark.parametrize("length", [2, 7, 48])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_perplexity_is_that_of_a_direct_loop(
    model: LlamaForCausalLM, length: int, batch_size: int
) -> None:
    result = perplexity(model, TOKENS, length, batch_size)
    expected = reference_losses(model, TOKENS, length)
    assert result.window_losses == pytest.approx(expected, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)
    assert result.max_seq_length == length
    assert result.num_tokens == len(expected) * (length - 1) == 101 // length * (length - 1)


def test_standard_error_is_by_the_delta_method(model: LlamaForCausalLM) -> None:
    result = perplexity(model, TOKENS, 9)
    losses = torch.tensor(reference_losses(model, TOKENS, 9), dtype=torch.float64)
    expected = losses.mean().exp() * losses.std() / math.sqrt(len(losses))
    assert result.standard_error == pytest.approx(float(expected), rel=1e-4)


@settings(deadline=None, max_examples=15)
@given(num_tokens=st.integers(2, 60), length=st.integers(2, 48), batch_size=st.integers(1, 5))
def test_windows_cover_all_but_the_remainder(
    model: LlamaForCausalLM, num_tokens: int, length: int, batch_size: int
) -> None:
    result = perplexity(model, TOKENS[:num_tokens], length, batch_size)
    length = min(length, num_tokens)
    assert result.max_seq_length == length
    assert len(result.window_losses) == num_tokens // length
    assert result.num_tokens == num_tokens // length * (length - 1)


def test_short_text_is_one_shorter_window(model: LlamaForCausalLM) -> None:
    result = perplexity(model, TOKENS[:5], 48)
    assert result.window_losses == pytest.approx(reference_losses(model, TOKENS[:5], 5), rel=1e-5)
    assert math.isnan(result.standard_error)


def test_integers_of_any_type_do(model: LlamaForCausalLM) -> None:
    assert perplexity(model, TOKENS.to(torch.int16), 7) == perplexity(model, TOKENS, 7)


def test_windows_of_other_tokens_have_another_digest(model: LlamaForCausalLM) -> None:
    digest = perplexity(model, TOKENS, 7).tokens_sha256
    other = TOKENS.clone()
    other[3] += 1
    assert perplexity(model, other, 7).tokens_sha256 != digest
    # 101 tokens are 14 windows of 7: the rest does not count.
    assert perplexity(model, TOKENS[:98], 7).tokens_sha256 == digest


def test_bf16_logits_are_summed_in_higher_precision(model: LlamaForCausalLM) -> None:
    half = LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    expected = reference_losses(half, TOKENS, 48)
    assert perplexity(half, TOKENS, 48, 2).window_losses == pytest.approx(expected, rel=1e-3)


def test_model_keeps_its_mode_and_gets_no_gradient(model: LlamaForCausalLM) -> None:
    other = LlamaForCausalLM(model.config).train()
    perplexity(other, TOKENS[:20], 7)
    assert all(module.training for module in other.modules())
    assert all(parameter.grad is None for parameter in other.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_model_has_infinite_perplexity(model: LlamaForCausalLM, value: float) -> None:
    broken = LlamaForCausalLM(model.config)
    with torch.no_grad():
        broken.lm_head.weight[3] = value
    result = perplexity(broken, TOKENS, 7)
    assert result.perplexity == math.inf
    assert math.isnan(result.standard_error)


class Recorder:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, task: str, total: int) -> None:
        self.told.append((task, total))

    def advance(self, detail: str = "") -> None:
        self.told.append(detail)

    def close(self) -> None:
        self.told.append("closed")


def test_progress_is_told_of_every_batch(model: LlamaForCausalLM) -> None:
    recorder = Recorder()
    result = perplexity(model, TOKENS, 20, 2, recorder)
    assert recorder.told[0] == ("perplexity", 3)
    assert len(recorder.told) == 4
    assert recorder.told[-1] == f"perplexity {result.perplexity:.2f}"


def test_record_has_the_numbers_of_the_result(model: LlamaForCausalLM) -> None:
    result = perplexity(model, TOKENS, 7)
    record = result.to_record("a.txt")
    assert record.text == "a.txt"
    for name in ("perplexity", "standard_error", "num_tokens", "max_seq_length"):
        assert getattr(record, name) == getattr(result, name)


@pytest.mark.parametrize(
    ("token_ids", "length", "batch_size", "message"),
    [
        (TOKENS[:1], 7, 8, "a text of at least 2 tokens, but it has 1"),
        (TOKENS[:0], 7, 8, "a text of at least 2 tokens, but it has 0"),
        (TOKENS, 1, 8, "windows of at least 2 tokens, but max_seq_length is 1"),
        (TOKENS, 49, 8, "windows of at most 48 tokens, .*, but max_seq_length is 49"),
        (TOKENS, 7, 0, "a batch size of at least 1, but got 0"),
        (TOKENS + 200, 7, 8, "token ids from 0 to 287"),
        (TOKENS[None], 7, 8, r"integers \[T\], but got torch.int64 \[1, 101\]"),
        (TOKENS.float(), 7, 8, r"integers \[T\], but got torch.float32 \[101\]"),
    ],
)
def test_bad_input_is_refused(
    model: LlamaForCausalLM, token_ids: Tensor, length: int, batch_size: int, message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        perplexity(model, token_ids, length, batch_size)


def test_encode_text_adds_what_the_tokenizer_adds(
    tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = encode_text(tokenizer, "the cat")
    assert plain.dtype == torch.int64
    assert tokenizer.decode(plain) == "the cat"
    assert encode_text(bos_tokenizer, "the cat").tolist() == [0, *plain.tolist()]


def test_documents_begin_anew_where_the_tokenizer_spells_out_what_parts_them(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    one, two = (encode_text(bos_tokenizer, text).tolist() for text in ("the cat", "the dog"))
    assert encode_text(bos_tokenizer, "the cat\n<|endoftext|>\nthe dog\n").tolist() == one + two
    with pytest.raises(SecateurError, match="at least one token, but it is empty"):
        encode_text(bos_tokenizer, "<|endoftext|>\n")


def test_empty_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(SecateurError, match="at least one token, but it is empty"):
        encode_text(tokenizer, "")
