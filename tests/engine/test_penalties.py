"""Penalties for what a text holds already: the formula, and requests against plain loops."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

from secateur import Engine, GenerationOptions
from secateur.engine.penalties import count_tokens, note_prompt, penalized
from secateur.engine.sampling import SamplingKind

VOCABULARY = 11
PROMPTS = [[5, 6, 7, 5, 9], [8] * 12, [40, 3, 40]]
MOST = GenerationOptions(max_new_tokens=14, ignore_eos=True)


def seen_in(prompt: list[int], text: list[int], size: int) -> Tensor:
    """int32 [1, size], counted one token after another."""
    seen = torch.zeros(1, size, dtype=torch.int32)
    note_prompt(seen[0], torch.tensor(sorted(set(prompt)), dtype=torch.int64))
    for token in text:
        count_tokens(seen, torch.tensor([token]), torch.tensor([True]))
    return seen


def reference(
    logits: Tensor, prompt: list[int], text: list[int], options: GenerationOptions
) -> Tensor:
    """fp64 [vocabulary], a token at a time."""
    lowered = logits.double().clone()
    for token in range(len(lowered)):
        if token in prompt or token in text:
            factor = options.repetition_penalty
            lowered[token] *= factor if lowered[token] < 0 else 1 / factor
        lowered[token] -= text.count(token) * options.frequency_penalty
        lowered[token] -= (token in text) * options.presence_penalty
    return lowered


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=9)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    prompt=TOKENS,
    text=TOKENS,
    repetition=st.floats(0.1, 3.0),
    presence=st.floats(-2.0, 2.0),
    frequency=st.floats(-2.0, 2.0),
)
def test_logits_are_those_of_a_reference_in_fp64(
    seed: int,
    prompt: list[int],
    text: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    options = replace(
        MOST,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    tensors = (torch.tensor([value]) for value in (repetition, presence, frequency))
    found = penalized(logits, seen_in(prompt, text, VOCABULARY), *tensors)
    expected = reference(logits[0], prompt, text, options)
    # Penalties in fp32, a product, a quotient, two sums: each off by half a unit of its size.
    size = 10 * logits.abs().max() + 2 * len(text) + 2
    assert (found[0].double() - expected).abs().max() <= 6 * size * torch.finfo(torch.float32).eps


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    logits[0, 3] = 0.0
    held = [3, 5, 5, 0]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([held]), logits.clone())
    nothing = torch.zeros(1)
    found = penalized(logits, seen_in(held, [], VOCABULARY), torch.tensor([1.3]), nothing, nothing)
    assert torch.equal(found, expected)


def test_rows_that_ask_for_nothing_stay_as_they_are() -> None:
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(2))
    logits[0, :3] = torch.tensor([-0.0, -torch.inf, 1e-40])
    seen = torch.arange(VOCABULARY, dtype=torch.int32).expand(2, -1)
    one, nothing = torch.tensor([1.0, 1.5]), torch.tensor([0.0, 0.5])
    found = penalized(logits, seen, one, nothing, nothing)
    assert torch.equal(found[0], logits[0])
    assert not torch.equal(found[1], logits[1])


def test_tokens_are_counted_where_a_row_is_active() -> None:
    seen = torch.zeros(3, 4, dtype=torch.int32)
    for _ in range(300):
        count_tokens(seen, torch.tensor([1, 1, 3]), torch.tensor([True, False, True]))
    one, nothing = torch.ones(3), torch.zeros(3)
    taken_off = -penalized(torch.zeros(3, 4), seen, one, nothing, one)
    expected = torch.zeros(3, 4)
    expected[0, 1] = expected[2, 3] = 300
    assert torch.equal(taken_off, expected)


def plainly(model: PreTrainedModel, prompt: list[int], options: GenerationOptions) -> list[int]:
    """Greedy, by whole forward passes."""
    text: list[int] = []
    for _ in range(options.max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits
        text.append(int(reference(logits[0, -1], prompt, text, options).argmax()))
    return text


ASKED: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.4},
    "less than one": {"repetition_penalty": 0.7},
    "presence": {"presence_penalty": 0.3},
    "frequency": {"frequency_penalty": 0.2},
    "sought": {"frequency_penalty": -0.2, "presence_penalty": -0.1},
    "all": {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1},
}


@pytest.mark.parametrize("name", ASKED)
def test_texts_are_those_of_a_plain_loop(name: str) -> None:
    """Beside requests that ask for nothing, in rows that others have used."""
    model = tiny_model("llama")
    options = replace(MOST, **ASKED[name])
    engine = Engine(model, max_batch_size=2, max_length=64)
    plain = engine.generate(PROMPTS, MOST)
    every = [options, MOST, options, options]
    results = engine.generate([*PROMPTS, PROMPTS[0]], every)
    found = [list(result.token_ids) for result in results]
    expected = [plainly(model, prompt, options) for prompt in PROMPTS]
    assert found == [expected[0], list(plain[1].token_ids), expected[2], expected[0]]
    assert expected[0] != list(plain[0].token_ids)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3"])
def test_repetition_is_penalized_as_transformers_does(family: str) -> None:
    model = tiny_model(family)
    prompt = torch.tensor([PROMPTS[0]])
    options = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), repetition_penalty=1.2, **options
    )
    engine = Engine(model, max_length=64)
    result = engine.generate([PROMPTS[0]], replace(MOST, repetition_penalty=1.2))[0]
    assert list(result.token_ids) == expected[0, prompt.shape[1] :].tolist()


def test_sampled_tokens_are_penalized_and_scored_by_the_model() -> None:
    model = tiny_model("llama")
    engine = Engine(model, max_length=64)
    asked = replace(MOST, temperature=0.8, seed=3, logprobs=True)
    often = engine.generate([PROMPTS[0]], replace(asked, frequency_penalty=-2.0))[0]
    seldom = engine.generate([PROMPTS[0]], replace(asked, frequency_penalty=2.0))[0]
    assert len(set(often.token_ids)) < len(set(seldom.token_ids)) == len(seldom.token_ids)
    whole = torch.tensor([PROMPTS[0] + list(seldom.token_ids)])
    with torch.no_grad():
        scores = model(input_ids=whole).logits.log_softmax(-1)[0]
    places = range(len(PROMPTS[0]) - 1, whole.shape[1] - 1)
    expected = [
        float(scores[place, token]) for place, token in zip(places, seldom.token_ids, strict=True)
    ]
    assert seldom.logprobs == pytest.approx(expected, abs=1e-5)


def test_what_a_request_needs_is_told_by_its_options() -> None:
    assert not MOST.penalizes
    for changes in ASKED.values():
        assert replace(MOST, **changes).penalizes
    neutral = replace(MOST, repetition_penalty=1, presence_penalty=0, frequency_penalty=0.0)
    assert not neutral.penalizes
    assert (SamplingKind(penalized=True) | SamplingKind(sampled=True)).penalized
