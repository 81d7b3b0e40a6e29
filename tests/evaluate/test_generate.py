import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.errors import SecateurError
from secateur.evaluate.generate import generate_text


def greedy_reference(model: LlamaForCausalLM, token_ids: list[int], count: int) -> list[int]:
    """The largest logit each time, until the end of the text."""
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([token_ids])).logits[0, -1].argmax())
        token_ids = [*token_ids, token]
        if token == 1:
            break
    return token_ids


@pytest.mark.parametrize("prompt", ["the cat", "a bird sang", "é", " "])
def test_temperature_zero_is_greedy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str
) -> None:
    expected = greedy_reference(model, tokenizer.encode(prompt), 9)
    text = generate_text(model, tokenizer, prompt, 9)
    assert prompt + text == tokenizer.decode(expected, skip_special_tokens=True)


def test_first_token_is_not_part_of_the_continuation(
    model: LlamaForCausalLM, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = greedy_reference(model, bos_tokenizer.encode("the cat"), 5)
    text = generate_text(model, bos_tokenizer, "the cat", 5)
    assert "the cat" + text == bos_tokenizer.decode(expected, skip_special_tokens=True)


def test_sampling_depends_on_the_seed_alone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [generate_text(model, tokenizer, "the", 12, 1.0, seed=seed) for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = [generate_text(model, tokenizer, "the", 12, 1.0, seed=seed) for seed in range(4)]
    assert first == again
    assert len(set(first)) > 1


def test_small_top_p_leaves_the_likeliest(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    greedy = generate_text(model, tokenizer, "the cat", 9)
    assert generate_text(model, tokenizer, "the cat", 9, 1.5, top_p=1e-6, seed=3) == greedy


def test_sampling_reaches_tokens_beyond_the_usual_top_k(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():
        row = model(torch.tensor([tokenizer.encode("the")])).logits[0, -1]
    usual = {tokenizer.decode([token]) for token in row.topk(50).indices.tolist()}
    texts = {generate_text(model, tokenizer, "the", 1, 1e4, seed=seed) for seed in range(30)}
    assert texts - usual


def test_advice_of_the_checkpoint_is_ignored_without_warning(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = generate_text(model, tokenizer, "the cat", 9)
    advice = {"do_sample": True, "temperature": 0.6, "top_k": 5, "repetition_penalty": 9.0}
    advice |= {"no_repeat_ngram_size": 1, "min_new_tokens": 40, "suppress_tokens": [5, 6, 7]}
    for name, value in advice.items():
        monkeypatch.setattr(model.generation_config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate_text(model, tokenizer, "the cat", 9) == expected
    assert caplog.text == ""


def test_prompt_that_decodes_differently_alone() -> None:
    class Odd:
        """Decoding drops a space at the start and joins what it is given."""

        bos_token_id = eos_token_id = None

        def encode(self, text: str, **_: Any) -> list[int]:
            return [2]

        def decode(self, token_ids: list[int], **_: Any) -> str:
            return {1: "alone", 3: "whole text", 2: " new"}[len(token_ids)]

    model = nn.Embedding(4, 2)
    model.get_input_embeddings = lambda: model  # type: ignore[assignment]
    model.generate = lambda ids, **_: torch.tensor([[2, 3, 3]])  # type: ignore[assignment]
    assert generate_text(model, Odd(), "x", 2) == " new"


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "a prompt to continue, but got ''"),
        ("the cat", {"max_new_tokens": 0}, "at least 1 new token, but got 0"),
        (
            "the",
            {"max_new_tokens": 48},
            "at most 48 tokens, .* the prompt has 1 and 48 are to foll",
        ),
        ("the", {"temperature": -1.0}, "a temperature of 0 or more, but got -1.0"),
        ("the", {"temperature": float("nan")}, "a temperature of 0 or more, but got nan"),
        ("the", {"top_p": 0.0}, "top_p above 0 and at most 1, but got 0.0"),
        ("the", {"top_p": 1.5}, "top_p above 0 and at most 1, but got 1.5"),
        ("the", {"seed": 2**32}, r"0 <= seed < 2\^32, got 4294967296"),
    ],
)
def test_bad_input_is_refused(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(SecateurError, match=message):
        generate_text(model, tokenizer, prompt, **({"max_new_tokens": 5} | settings))


def test_model_that_cannot_generate_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = nn.Embedding(288, 2)
    model.get_input_embeddings = lambda: model  # type: ignore[assignment]
    model.config = SimpleNamespace(max_position_embeddings=None)  # type: ignore[assignment]
    with pytest.raises(SecateurError, match="a generate method, but got Embedding"):
        generate_text(model, tokenizer, "the", 5)
