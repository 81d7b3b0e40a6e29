"""Log-probabilities of prompts and of what follows, against the model's logits in float64."""

from itertools import product

import pytest
import torch
from transformers import PreTrainedModel

from secateur.engine import Engine, GenerationOptions, Piece, Result, ScoredToken

# Beside the chunks of 16: shorter, as long, longer, and several.
PROMPTS = [[7], [7, 8], list(range(16)), list(range(40, 57)), list(range(100, 150))]
# fp32 against float64, through two blocks.
CLOSE = 1e-4


def everything(new_tokens: int, top: int = 3) -> GenerationOptions:
    return GenerationOptions(
        new_tokens, ignore_eos=True, logprobs=True, top_logprobs=top, prompt_logprobs=True
    )


def check(model: PreTrainedModel, prompt: list[int], result: Result, top: int) -> None:
    token_ids = [*prompt, *result.token_ids]
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0]
    expected = torch.log_softmax(logits.double(), -1)
    assert result.prompt_scores is not None
    assert result.scores is not None
    scores = (*result.prompt_scores, *result.scores)
    assert [one.token_id for one in scores] == token_ids[1:]
    for place, one in zip(expected, scores, strict=False):
        assert one.logprob == pytest.approx(float(place[one.token_id]), abs=CLOSE)
        assert [value for _, value in one.top] == pytest.approx(
            place.topk(top).values.tolist(), abs=CLOSE
        )
        assert [float(place[token]) for token, _ in one.top] == pytest.approx(
            [value for _, value in one.top], abs=CLOSE
        )


@pytest.mark.parametrize(("new_tokens", "top"), list(product((0, 1, 5), (0, 3, 20))))
def test_scores_are_those_of_the_models_logits(
    byte_model: PreTrainedModel, engine: Engine, new_tokens: int, top: int
) -> None:
    results = engine.generate(PROMPTS, everything(new_tokens, top))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert len(result.token_ids) == new_tokens
        assert result.finish_reason == "length"
        check(byte_model, prompt, result, top)


def test_scored_prompts_and_others_run_beside_each_other(
    byte_model: PreTrainedModel, engine: Engine
) -> None:
    plain = GenerationOptions(max_new_tokens=5, ignore_eos=True)
    options = [everything(5) if number % 2 else plain for number in range(len(PROMPTS))]
    results = engine.generate(PROMPTS, options)
    assert [one.token_ids for one in results] == [
        engine.generate([prompt], plain)[0].token_ids for prompt in PROMPTS
    ]
    for prompt, result, asked in zip(PROMPTS, results, options, strict=True):
        if asked is plain:
            assert (result.scores, result.prompt_scores) == (None, None)
        else:
            check(byte_model, prompt, result, 3)


def test_the_likeliest_token_is_as_likely_as_the_one_that_was_taken(engine: Engine) -> None:
    (result,) = engine.generate([[7, 8]], everything(8, 1))
    assert result.scores is not None
    # To the last bit: clients compare them.
    assert [one.top for one in result.scores] == [
        ((one.token_id, one.logprob),) for one in result.scores
    ]


def test_a_prompt_as_long_as_the_context_can_be_read(
    byte_model: PreTrainedModel, engine: Engine
) -> None:
    prompt = list(range(80))
    (result,) = engine.generate([prompt], everything(0))
    check(byte_model, prompt, result, 3)
    assert result.text == ""


def test_scores_come_with_their_tokens(engine: Engine) -> None:
    pieces: list[Piece] = list(engine.stream(PROMPTS[4], everything(4)))
    result = pieces[-1].result
    assert result is not None
    assert pieces[0].prompt_scores == result.prompt_scores
    assert not any(piece.prompt_scores for piece in pieces[1:])
    for piece in pieces:
        assert tuple(one.token_id for one in piece.scores) == piece.token_ids
    assert tuple(one for piece in pieces for one in piece.scores) == result.scores


def test_as_many_of_the_likeliest_are_told_as_are_asked_for() -> None:
    one = ScoredToken(3, -1.0, ((4, -0.5), (3, -1.0)))
    assert one.with_top(1) == ScoredToken(3, -1.0, ((4, -0.5),))
