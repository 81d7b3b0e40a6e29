"""Bodies of requests: what is read, what is refused and in which words."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.serve.faults import RequestFault
from secateur.serve.requests import (
    MOST_ANSWERS,
    MOST_STOPS,
    SamplingDefaults,
    chat_request,
    completion_request,
    parse_body,
)

LEAST = {"model": "m", "prompt": "a"}
TALK = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def test_defaults_are_those_of_the_api() -> None:
    request = completion_request(LEAST)
    assert request.prompts == ("a",)
    assert (request.max_tokens, request.temperature, request.top_p) == (None, 1.0, 1.0)
    assert (request.usual_tokens, request.top_k) == (16, 0)
    assert (request.stop, request.stream, request.logprobs) == ((), False, False)
    talk = chat_request(TALK)
    assert (talk.max_tokens, talk.usual_tokens) == (None, None)


def test_a_models_own_defaults_stand_where_nothing_is_said() -> None:
    own = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.05)
    for request in (completion_request(LEAST, own), chat_request(TALK, own)):
        assert (request.temperature, request.top_p, request.top_k) == (0.6, 0.9, 20)
        assert (request.min_p, request.repetition_penalty) == (0.1, 1.05)
    said = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    request = completion_request(LEAST | said, own)
    assert (request.temperature, request.top_p, request.top_k) == (0.0, 1.0, 0)
    assert (request.min_p, request.repetition_penalty) == (0.0, 1.0)
    assert completion_request(LEAST | {"top_k": -1}, own).top_k == 0


def test_what_is_given_is_read() -> None:
    more = {"max_tokens": 3, "temperature": 0, "top_p": 0.5, "stop": ["x", "y"], "seed": 7}
    request = completion_request(LEAST | more | {"logprobs": 0, "user": "u", "n": 1})
    assert (request.max_tokens, request.temperature, request.top_p) == (3, 0.0, 0.5)
    assert (request.stop, request.seed, request.logprobs) == (("x", "y"), 7, True)
    assert (request.top_logprobs, request.echo) == (0, False)
    scored = completion_request(LEAST | {"logprobs": 5, "echo": True, "max_tokens": 0})
    assert (scored.top_logprobs, scored.echo, scored.max_tokens) == (5, True, 0)
    assert chat_request(TALK | {"logprobs": True, "top_logprobs": 3}).top_logprobs == 3
    assert completion_request(LEAST | {"stop": "x"}).stop == ("x",)
    assert completion_request(LEAST | {"top_k": 5, "n": 3}).top_k == 5
    assert completion_request(LEAST | {"top_k": -1}).top_k == 0
    lowered = {"presence_penalty": -2, "frequency_penalty": 0.5, "repetition_penalty": 1.2}
    talk = chat_request(TALK | lowered | {"min_p": 0.05})
    assert (talk.presence_penalty, talk.frequency_penalty) == (-2.0, 0.5)
    assert (talk.repetition_penalty, talk.min_p) == (1.2, 0.05)
    neutral = {"min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "stop_token_ids": []}
    neutral |= {"min_tokens": 0}
    assert chat_request(TALK | neutral | {"n": 3}).n == 3
    talk = chat_request(TALK | {"max_tokens": 3, "max_completion_tokens": 4})
    assert talk.max_tokens == 4
    assert completion_request(LEAST | {"max_completion_tokens": 5}).max_tokens == 5
    assert completion_request(LEAST | {"n": 2, "best_of": 2}).n == 2
    answered = {"messages": [{"role": "assistant", "content": None}, *TALK["messages"]]}
    assert chat_request(TALK | answered).messages[0] == {"role": "assistant", "content": ""}


def test_load_generators_get_what_they_ask_for() -> None:
    asked = {"ignore_eos": True, "max_tokens": 5, "stop_token_ids": [7, 2]}
    counted = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for request in (completion_request(LEAST | asked | counted), chat_request(TALK | asked)):
        assert (request.ignore_eos, request.stop_token_ids) == (True, (7, 2))
    fewest = {"ignore_eos": True, "min_tokens": 5, "max_tokens": 5, "stop": None}
    assert completion_request(LEAST | fewest).max_tokens == 5
    request = completion_request(LEAST | counted)
    assert (request.include_usage, request.continuous_usage) == (True, True)
    alone = completion_request(LEAST | {"stream_options": {"continuous_usage_stats": True}})
    assert (alone.include_usage, alone.continuous_usage) == (False, False)


def test_arguments_of_the_template_are_read() -> None:
    assert chat_request(TALK).template_arguments == {}
    asked = {"chat_template_kwargs": {"enable_thinking": False}}
    assert chat_request(TALK | asked).template_arguments == {"enable_thinking": False}


def test_seeds_are_those_that_are_given() -> None:
    assert completion_request(LEAST).seed is None
    assert 0 <= completion_request(LEAST | {"seed": -1}).seed < 2**63


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ([1, 2], ((1, 2),)),
        (["a", "b"], ("a", "b")),
        ([[1], [2, 3]], ((1,), (2, 3))),
        ("", ("",)),
    ],
)
def test_prompts_may_be_texts_or_tokens_one_or_many(prompt: Any, read: Any) -> None:
    assert completion_request(LEAST | {"prompt": prompt}).prompts == read


BAD = {
    "model": ({"model": ""}, "model: expected the name of a model, got ''"),
    "prompt": ({"prompt": None}, "prompt: expected a text, a list of token ids"),
    "no prompts": ({"prompt": []}, "prompt: expected a text"),
    "flags": ({"prompt": [True]}, "prompt: expected a text"),
    "mixed": ({"prompt": ["a", 1]}, "prompt: expected a text"),
    "prompts": ({"prompt": ["a"] * (MOST_ANSWERS + 1)}, "at most 64 prompts, got 65"),
    "surrogate": ({"prompt": "\ud800"}, "expected valid unicode, got surrogates not allowed"),
    "stop surrogate": ({"stop": "\ud800"}, "expected valid unicode"),
    "fewer": ({"max_tokens": -1}, "max_tokens: expected a whole number from 0 to"),
    "half": ({"max_tokens": 1.5}, "max_tokens: expected a whole number from 0 to"),
    "flag": ({"max_tokens": True}, "max_tokens: expected a whole number from 0 to"),
    "hot": ({"temperature": 2.1}, "temperature: expected a number from 0 to 2, got 2.1"),
    "NaN": ({"temperature": float("nan")}, "temperature: expected a number from 0 to 2, got nan"),
    "text": ({"temperature": "1"}, "temperature: expected a number from 0 to 2, got '1'"),
    "length": ({"temperature": "1" * 58}, f"got '{'1' * 58}'"),
    "longer": ({"temperature": "1" * 59}, f"got '{'1' * 56}..."),
    "top_p": ({"top_p": 0}, "top_p: expected a number above 0 and at most 1"),
    "stop": ({"stop": [""]}, "stop: expected a text or a list of texts, none empty"),
    "stop kind": ({"stop": 1}, "stop: expected a text or a list of texts"),
    "stops": ({"stop": ["a"] * (MOST_STOPS + 1)}, "expected at most 16 stops, got 17"),
    "seed": ({"seed": "a"}, "seed: expected a whole number"),
    "stream": ({"stream": 1}, "stream: expected true or false, got 1"),
    "options": ({"stream_options": 1}, "stream_options: expected an object, got 1"),
    "usage": ({"stream_options": {"include_usage": 1}}, "include_usage: expected true or false"),
    "n": ({"n": 0}, "n: expected a whole number from 1 to 64, got 0"),
    "n flag": ({"n": True}, "n: expected a whole number from 1 to 64, got True"),
    "answers": ({"n": 33, "prompt": ["a", "b"]}, "at most 64 answers, got 2 prompts with 33 each"),
    "best_of flag": ({"best_of": True}, "best_of: expected a whole number from 1 to 64, got True"),
    "best_of": ({"best_of": 2}, "best_of: expected n, 1, as none are left out, got 2"),
    "guided": ({"guided_choice": ["a"]}, "guided_choice is not supported, got ['a']"),
    "allowed": ({"allowed_token_ids": [5]}, "allowed_token_ids is not supported, got [5]"),
    "bad words": ({"bad_words": ["a"]}, "bad_words is not supported, got ['a']"),
    "beams": ({"use_beam_search": True}, "use_beam_search is not supported, got True"),
    "stop shown": ({"include_stop_str_in_output": True}, "include_stop_str_in_output is not"),
    "special shown": ({"skip_special_tokens": False}, "skip_special_tokens is not supported"),
    "no special": ({"add_special_tokens": False}, "add_special_tokens is not supported"),
    "cut": ({"truncate_prompt_tokens": 10}, "truncate_prompt_tokens is not supported, got 10"),
    "top_k": ({"top_k": -2}, "top_k: expected a whole number from -1 to"),
    "min_p": ({"min_p": 1.1}, "min_p: expected a number from 0 to 1, got 1.1"),
    "repetition": (
        {"repetition_penalty": 0},
        "repetition_penalty: expected a number above 0 and at most 100, got 0.0",
    ),
    "typical_p": ({"typical_p": 0.9}, "typical_p is not supported, got 0.9"),
    "no end": ({"ignore_eos": 1}, "ignore_eos: expected true or false, got 1"),
    "fewest alone": ({"min_tokens": 3}, "min_tokens is supported only with ignore_eos: true and"),
    "fewest and stop": (
        {"min_tokens": 3, "max_tokens": 3, "ignore_eos": True, "stop": "a"},
        "min_tokens is supported only with ignore_eos: true and without stop and stop_token_ids",
    ),
    "fewest and stop tokens": (
        {"min_tokens": 3, "max_tokens": 3, "ignore_eos": True, "stop_token_ids": [2]},
        "min_tokens is supported only with ignore_eos: true and without stop",
    ),
    "fewest above most": (
        {"min_tokens": 3, "max_tokens": 2, "ignore_eos": True},
        "min_tokens: expected max_tokens of as many with it, 3, got 2",
    ),
    "fewest without most": (
        {"min_tokens": 3, "ignore_eos": True},
        "min_tokens: expected max_tokens of as many with it, 3, got None",
    ),
    "stop below": ({"stop_token_ids": [-5]}, "stop_token_ids: expected a list of token ids"),
    "fewest kind": ({"min_tokens": "3"}, "min_tokens: expected a whole number from 0 to"),
    "stop tokens": ({"stop_token_ids": 2}, "stop_token_ids: expected a list of token ids, got 2"),
    "stop flags": ({"stop_token_ids": [True]}, "stop_token_ids: expected a list of token ids"),
    "many stop tokens": ({"stop_token_ids": [2] * 17}, "expected at most 16 stop_token_ids"),
    "each usage": (
        {"stream_options": {"continuous_usage_stats": 1}},
        "continuous_usage_stats: expected true or false",
    ),
    "echo": ({"echo": 1}, "echo: expected true or false, got 1"),
    "presence": (
        {"presence_penalty": 2.1},
        "presence_penalty: expected a number from -2 to 2, got 2.1",
    ),
    "frequency": (
        {"frequency_penalty": "1"},
        "frequency_penalty: expected a number from -2 to 2, got '1'",
    ),
    "bias": ({"logit_bias": {"1": 5}}, "logit_bias is not supported"),
    "format": ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
    "logprobs": ({"logprobs": 21}, "logprobs: expected a whole number from 0 to 20, got 21"),
    "logprobs flag": ({"logprobs": True}, "logprobs: expected a whole number from 0 to"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_is_said(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(RequestFault) as caught:
        completion_request(LEAST | change)
    assert message in str(caught.value)
    assert caught.value.status == 400
    # What is sent back can be encoded.
    json.dumps(caught.value.body()).encode("utf-8")


BAD_TALK = {
    "none": ({"messages": []}, "messages: expected a list of messages"),
    "no role": ({"messages": [{"content": "a"}]}, "messages.0: expected an object with a role"),
    "null": ({"messages": [{"role": "u", "content": None}]}, "messages.0.content: expected a text"),
    "picture": (
        {"messages": [{"role": "u", "content": [{"type": "image_url"}]}]},
        "messages.0.content: expected parts of type text",
    ),
    "no text": ({"messages": [{"role": "u", "content": [{"type": "text"}]}]}, "parts of type text"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is not supported"),
    "template": (
        {"chat_template_kwargs": ["a"]},
        "chat_template_kwargs: expected an object, got ['a']",
    ),
    "effort": ({"reasoning_effort": "high"}, "reasoning_effort is not supported, got 'high'"),
    "no turn": ({"add_generation_prompt": False}, "add_generation_prompt is not supported"),
    "special": ({"add_special_tokens": True}, "add_special_tokens is not supported, got True"),
    "no tokens": ({"max_tokens": 0}, "max_tokens: expected a whole number from 1 to"),
    "echo": ({"echo": True}, "echo is not supported, got True"),
    "top": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: expected a whole number from"),
    "top alone": ({"top_logprobs": 3}, "top_logprobs: expected logprobs: true with it, got 3"),
    "surrogate": ({"messages": [{"role": "\ud800", "content": "a"}]}, "expected valid unicode"),
    "calls": (
        {"messages": [{"role": "a", "content": "", "tool_calls": [{"id": "x"}]}]},
        "messages.0.tool_calls is not supported",
    ),
}


@pytest.mark.parametrize("name", BAD_TALK)
def test_what_is_refused_of_a_conversation_is_said(name: str) -> None:
    change, message = BAD_TALK[name]
    with pytest.raises(RequestFault) as caught:
        chat_request(TALK | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestFault, match="not valid JSON"):
        parse_body(raw)


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"[]", "a list"), (b'"a"', "a text"), (b"1", "a number"), (b"null", "null")]
)
def test_what_is_no_object_is_refused(raw: bytes, kind: str) -> None:
    with pytest.raises(RequestFault, match=f"expected a JSON object, got {kind}"):
        parse_body(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["model", "prompt", "messages", "max_tokens", "stop", "seed", "n", "stream", "logprobs"]

NEWER = ["stop_token_ids", "ignore_eos", "min_tokens", "stream_options", "chat_template_kwargs"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "temperature", "top_p", "tools", *NEWER]), JSON))
def test_no_json_ends_in_anything_but_a_request_or_a_fault(body: dict[str, Any]) -> None:
    for read in (completion_request, chat_request):
        try:
            read(body)
        except RequestFault as fault:
            json.dumps(fault.body()).encode("utf-8")
