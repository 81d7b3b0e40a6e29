"""Bodies of responses, events and counters."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from secateur.serve.bodies import Choice, Envelope, TokenLogprob, event, usage
from secateur.serve.faults import RequestFault, shutting_down
from secateur.serve.metrics import Metrics

LOGPROBS = (
    TokenLogprob(token="é", logprob=-0.5),
    TokenLogprob(token="\ufffd", logprob=-1.0, offset=1, top=(("a", -0.7), ("a", -0.9))),
)


def choice(index: int, text: str) -> Choice:
    return Choice(
        index=index,
        text=text,
        finish_reason="stop",
        prompt_tokens=3 + index,
        completion_tokens=5,
        logprobs=LOGPROBS if index else None,
    )


def test_whole_completions_have_the_apis_shape() -> None:
    body = Envelope("completion", "m", "1", 7).whole([choice(0, "a"), choice(1, "b")])
    assert (body["id"], body["object"], body["created"]) == ("cmpl-1", "text_completion", 7)
    first, second = body["choices"]
    assert first == {"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}
    assert second["logprobs"]["tokens"] == ["é", "\ufffd"]
    assert second["logprobs"]["token_logprobs"] == [-0.5, -1.0]
    assert second["logprobs"]["text_offset"] == [0, 1]
    # Of two tokens with one text the likelier is told, and always the one that is there.
    assert second["logprobs"]["top_logprobs"] == [None, {"a": -0.7, "\ufffd": -1.0}]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17}


def test_whole_messages_have_the_apis_shape() -> None:
    body = Envelope("chat", "m", "1", 7).whole([choice(1, "b")])
    assert (body["id"], body["object"]) == ("chatcmpl-1", "chat.completion")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "b"}
    whole, part = body["choices"][0]["logprobs"]["content"]
    assert whole["bytes"] == [0xC3, 0xA9]
    # A token that is a part of a character has bytes that nobody here knows.
    assert part["bytes"] is None
    assert whole["top_logprobs"] == []
    assert part["top_logprobs"][0] == {"token": "a", "logprob": -0.7, "bytes": [0x61]}


def test_pieces_say_which_sequence_and_when_it_ends() -> None:
    chat = Envelope("chat", "m", "1", 7)
    assert chat.start(0)["choices"][0]["delta"]["role"] == "assistant"
    piece = chat.piece(2, "t")
    assert piece["object"] == "chat.completion.chunk"
    assert piece["choices"][0]["index"] == 2
    assert piece["choices"][0]["delta"] == {"content": "t"}
    assert piece["choices"][0]["finish_reason"] is None
    last = chat.piece(0, "", "length")["choices"][0]
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    scored = chat.piece(0, "é", None, LOGPROBS[:1])["choices"][0]
    assert scored["logprobs"]["content"][0]["token"] == "é"
    completion = Envelope("completion", "m").piece(0, "x")
    assert completion["choices"][0]["text"] == "x"
    assert "usage" not in completion
    counting = Envelope("completion", "m", counts_tokens=True)
    assert counting.piece(0, "x")["usage"] is None
    total = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert usage(3, 2) == total
    assert counting.piece(0, "x", so_far=usage(3, 2))["usage"] == total
    assert counting.counts(usage(3, 2)) == counting.piece(0, "x") | {"choices": [], "usage": total}


def test_events_are_one_line_of_ascii() -> None:
    text = event({"text": "é\n\u2028"})
    assert text.isascii()
    assert text.startswith("data: ")
    assert text.count("\n") == 2
    assert json.loads(text[6:])["text"] == "é\n\u2028"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_faults_say_whose_fault_it_is(status: int, kind: str) -> None:
    error = RequestFault("why", status=status, param="p", code="c").body()["error"]
    assert error == {"message": "why", "type": kind, "param": "p", "code": "c"}
    assert shutting_down().status == 503


def test_counters_are_in_prometheus_text() -> None:
    metrics = Metrics()
    metrics.prompt_tokens.inc(4)
    metrics.requests.labels("/health", 200).inc(3)
    metrics.sequences.labels("stop").inc()
    metrics.first_token_seconds.observe(0.02)
    for seconds in (0.0035, 0.004, 100.0):
        metrics.inter_token_seconds.observe(seconds)
    text = metrics.text(running=5, waiting=6).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    lines = text.splitlines()
    assert 'secateur_requests_total{path="/health",status="200"} 3.0' in lines
    assert "secateur_prompt_tokens_total 4.0" in lines
    assert "secateur_generated_tokens_total 0.0" in lines
    assert 'secateur_sequences_total{reason="stop"} 1.0' in lines
    assert "secateur_running 5.0" in lines
    assert "secateur_waiting 6.0" in lines
    assert families["secateur_time_to_first_token_seconds"].type == "histogram"
    assert "secateur_time_to_first_token_seconds_sum 0.02" in lines
    for edge, count in (("0.003", 0), ("0.004", 2), ("60.0", 2), ("+Inf", 3)):
        assert f'secateur_inter_token_seconds_bucket{{le="{edge}"}} {count}.0' in lines


def test_each_server_counts_for_itself() -> None:
    one, other = Metrics(), Metrics()
    one.prompt_tokens.inc()
    assert "secateur_prompt_tokens_total 0.0" in other.text(0, 0).decode().splitlines()
