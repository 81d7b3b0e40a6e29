import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.errors import SecateurError
from secateur.evaluate.scoring import Request, encode_request, score_requests, truncate
from secateur.progress import SilentProgress

TEXTS = st.text("the cat\n.é", max_size=12)


def reference_score(model: LlamaForCausalLM, request: Request) -> tuple[float, bool]:
    """One request alone, token by token, each from a forward pass of its own, in float64."""
    total, is_greedy = 0.0, True
    for position in range(len(request.token_ids) - request.num_scored, len(request.token_ids)):
        before = torch.tensor([request.token_ids[:position]])
        with torch.no_grad():
            row = model(before).logits[0, -1].double()
        token = request.token_ids[position]
        total += float(row[token] - row.exp().sum().log())
        is_greedy = is_greedy and int(row.argmax()) == token
    return total, is_greedy


def random_requests(count: int) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    requests = []
    for _ in range(count):
        length = int(torch.randint(2, 20, (), generator=generator))
        tokens = torch.randint(288, (length,), generator=generator).tolist()
        scored = int(torch.randint(1, length, (), generator=generator))
        requests.append(Request(tuple(tokens), scored))
    return requests


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_are_those_of_one_token_at_a_time(model: LlamaForCausalLM, batch_size: int) -> None:
    requests = random_requests(11)
    scores = score_requests(model, requests, batch_size, SilentProgress())
    for score, request in zip(scores, requests, strict=True):
        log_prob, is_greedy = reference_score(model, request)
        assert score.log_prob == pytest.approx(log_prob, rel=1e-5, abs=1e-4)
        assert score.is_greedy == is_greedy


def test_greedy_continuation_is_greedy(model: LlamaForCausalLM) -> None:
    prompt = torch.tensor([[5, 9, 200]])
    output = model.generate(
        prompt, max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=None
    )[0].tolist()
    greedy = Request(tuple(output), 4)
    wrong = Request((*output[:-1], (output[-1] + 1) % 288), 4)
    scores = score_requests(model, [greedy, wrong], 2, SilentProgress())
    assert [score.is_greedy for score in scores] == [True, False]


def test_output_that_is_not_a_number_is_never_likely(model: LlamaForCausalLM) -> None:
    broken = LlamaForCausalLM(model.config)
    with torch.no_grad():
        broken.lm_head.weight[0] = torch.nan
    (score,) = score_requests(broken, [Request((3, 0), 1)], 1, SilentProgress())
    assert (score.log_prob, score.is_greedy) == (-torch.inf, False)


@pytest.mark.parametrize(
    ("context", "continuation"),
    [("the cat", " sat"), ("the cat ", "sat"), ("the cat  \n", "sat"), ("the", "re"), ("x", "é")],
)
def test_context_and_continuation_are_one_text(
    tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> None:
    request = encode_request(tokenizer, context, continuation)
    token_ids = list(request.token_ids)
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == context + continuation
    scored = tokenizer.decode(token_ids[-request.num_scored :])
    assert scored.endswith(continuation)


def test_trailing_space_goes_to_the_continuation(tokenizer: PreTrainedTokenizerFast) -> None:
    spaced, plain = (
        encode_request(tokenizer, *texts) for texts in [("the cat ", "sat"), ("the cat", " sat")]
    )
    assert spaced == plain
    assert tokenizer.decode(list(plain.token_ids[-plain.num_scored :])) == " sat"


def test_token_across_the_boundary_is_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode("the")) == 1
    request = encode_request(tokenizer, "on t", "he")
    assert tokenizer.decode(list(request.token_ids[-request.num_scored :])) == " the"
    # Nothing of the context is left: the tokenizer's first token stands for it.
    assert encode_request(tokenizer, "t", "he") == Request((0, *tokenizer.encode("the")), 1)


@settings(deadline=None, max_examples=50)
@given(context=TEXTS, continuation=TEXTS.filter(bool))
def test_first_token_is_added_where_the_tokenizer_adds_none(
    tokenizer: PreTrainedTokenizerFast,
    bos_tokenizer: PreTrainedTokenizerFast,
    context: str,
    continuation: str,
) -> None:
    plain = encode_request(tokenizer, context, continuation)
    with_first = encode_request(bos_tokenizer, context, continuation)
    assert with_first.token_ids.count(0) == 1
    assert with_first.token_ids[-plain.num_scored :] == plain.token_ids[-plain.num_scored :]
    assert with_first.num_scored == plain.num_scored


def test_text_that_begins_with_the_first_token_gets_no_other(
    tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = encode_request(tokenizer, "", "the")
    assert encode_request(tokenizer, "", "<bos>the") == expected
    assert encode_request(bos_tokenizer, "", "<bos>the") == expected


def test_tokenizer_without_first_token_is_refused(bare_tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_request(bare_tokenizer, "the cat", " sat").num_scored >= 1
    with pytest.raises(SecateurError, match="the missing context of 'the', but it has neither"):
        encode_request(bare_tokenizer, "", "the")


@pytest.mark.parametrize("context", ["", "the"])
def test_nothing_to_predict_is_refused(tokenizer: PreTrainedTokenizerFast, context: str) -> None:
    with pytest.raises(SecateurError, match="at least one token to predict in ''"):
        encode_request(tokenizer, context, "")


def test_truncation_drops_the_beginning() -> None:
    request = Request((1, 2, 3, 4, 5), 2)
    assert truncate(request, None) is request
    assert truncate(request, 4) is request
    assert truncate(request, 3) == Request((2, 3, 4, 5), 2, is_truncated=True)
    assert truncate(request, 1) == Request((4, 5), 1, is_truncated=True)


def test_bad_input_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(SecateurError, match="batch size of at least 1, but got 0"):
        score_requests(model, [], 0, SilentProgress())
    with pytest.raises(SecateurError, match=r"token ids from 0 to 287, .* but got 288"):
        score_requests(model, [Request((1, 288), 1)], 1, SilentProgress())
