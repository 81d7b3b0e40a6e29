"""A real server process: many streams at once, clients that leave, bad requests, its end."""

import gzip
import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from served import LENGTH, NAME, Server, events, tokenizer
from thoroughness import most_telling

from secateur.checkpoint.load import load_with_tokenizer
from secateur.engine import Engine, GenerationOptions, Result

NUM_STREAMS = 200
TWICE = [signal.SIGINT, signal.SIGINT]


@pytest.fixture(scope="session")
def engine(folder: Path) -> Engine:
    loaded = load_with_tokenizer(folder)
    return Engine(loaded.model, loaded.tokenizer, max_batch_size=1, max_length=LENGTH)


def alone(engine: Engine, prompt: str, **options: Any) -> Result:
    return engine.generate([prompt], GenerationOptions(**options))[0]


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def body(prompt: str = "Rose", **more: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": prompt, "temperature": 0, **more}


def test_200_streams_at_once_each_get_their_own_answer(server: Server, engine: Engine) -> None:
    prompts = [f"{'é' * (number % 7)}{number} ash" for number in range(NUM_STREAMS)]
    counts = [3 + number % 11 for number in range(NUM_STREAMS)]

    def one(number: int) -> list[Any]:
        asked = body(prompts[number], max_tokens=counts[number], stream=True)
        status, text = server.ask("POST", "/v1/completions", asked)
        assert status == 200
        return events(text)

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        answers = list(pool.map(one, range(NUM_STREAMS)))
    seen_ids, seen_texts = set(), set()
    for number, answer in enumerate(answers):
        *pieces, done = answer
        assert done == "[DONE]"
        expected = alone(engine, prompts[number], max_new_tokens=counts[number])
        text = "".join(piece["choices"][0]["text"] for piece in pieces)
        assert text == expected.text
        reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
        assert reasons[:-1] == [None] * (len(pieces) - 1)
        assert reasons[-1] == {"length": "length", "eos": "stop"}[expected.finish_reason]
        assert len({piece["id"] for piece in pieces}) == 1
        seen_ids.add(pieces[0]["id"])
        seen_texts.add(text)
    assert len(seen_ids) == NUM_STREAMS
    # Answers that are all alike could be mixed up unseen.
    assert len(seen_texts) > NUM_STREAMS / 2
    assert server.metric("secateur_running") == 0


def test_an_answer_in_one_piece_is_the_stream_joined(server: Server, engine: Engine) -> None:
    status, whole = server.post("/v1/completions", body(max_tokens=9))
    expected = alone(engine, "Rose", max_new_tokens=9)
    assert status == 200
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == expected.text
    used = whole["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (4, len(expected.token_ids))
    assert used["total_tokens"] == 4 + len(expected.token_ids)


def test_token_ids_and_several_prompts_are_answered_in_order(
    server: Server, engine: Engine
) -> None:
    ids = tokenizer().encode("Elm")
    status, answer = server.post("/v1/completions", body(max_tokens=4) | {"prompt": ["Oak", "Ivy"]})
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, prompt in zip(answer["choices"], ("Oak", "Ivy"), strict=True):
        assert choice["text"] == alone(engine, prompt, max_new_tokens=4).text
    _, by_ids = server.post("/v1/completions", body(max_tokens=4) | {"prompt": ids})
    assert by_ids["choices"][0]["text"] == alone(engine, "Elm", max_new_tokens=4).text


def test_seeds_stops_and_log_probabilities_reach_the_engine(server: Server, engine: Engine) -> None:
    sampled = body(max_tokens=8, temperature=1.5, top_p=0.9, seed=11, logprobs=0)
    _, answer = server.post("/v1/completions", sampled)
    settings: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": 11, "logprobs": True}
    expected = alone(engine, "Rose", max_new_tokens=8, **settings)
    assert answer["choices"][0]["text"] == expected.text
    shown = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert shown == pytest.approx(expected.logprobs, rel=1e-4)
    lowered = {"min_p": 0.01, "repetition_penalty": 1.3}
    lowered |= {"presence_penalty": 0.5, "frequency_penalty": 1.0}
    again = server.post("/v1/completions", sampled | lowered)[1]["choices"][0]["text"]
    assert again == alone(engine, "Rose", max_new_tokens=8, **settings, **lowered).text
    assert again != expected.text
    other = server.post("/v1/completions", sampled | {"seed": 12})[1]
    assert other["choices"][0]["text"] != expected.text
    full = alone(engine, "Rose", max_new_tokens=12).text
    stop = full[3:5]
    _, stopped = server.post("/v1/completions", body(max_tokens=12, stop=[stop, "never"]))
    assert stopped["choices"][0]["text"] == full[: full.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    token_ids = alone(engine, "Rose", max_new_tokens=12).token_ids
    end = body(max_tokens=12, stop_token_ids=[token_ids[5]])
    _, ended = server.post("/v1/completions", end)
    count = token_ids.index(token_ids[5]) + 1
    assert ended["choices"][0]["text"] == alone(engine, "Rose", max_new_tokens=count).text
    assert ended["usage"]["completion_tokens"] == count


def logprobs_of(said: str, stream: bool) -> tuple[str, dict[str, list[Any]]]:
    """Text and log-probabilities of an answer's only sequence, its pieces joined."""
    text, joined = "", {}
    for one in events(said)[:-1] if stream else [json.loads(said)]:
        (choice,) = one["choices"]
        text += choice["text"]
        for name, values in choice["logprobs"].items():
            joined[name] = [*joined.get(name, []), *values]
    return text, joined


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_prompts_are_scored_as_by_the_model(
    server: Server, engine: Engine, folder: Path, stream: bool, max_tokens: int
) -> None:
    asked = body(max_tokens=max_tokens, echo=True, logprobs=2, stream=stream)
    text, scored = logprobs_of(server.ask("POST", "/v1/completions", asked)[1], stream)
    ids = tokenizer().encode("Rose")
    if max_tokens:
        written = alone(engine, "Rose", max_new_tokens=max_tokens)
        assert text == "Rose" + written.text
        ids += written.token_ids
    with torch.no_grad():
        logits = load_with_tokenizer(folder).model(torch.tensor([ids])).logits[0]
    expected = torch.log_softmax(logits.double(), -1)
    assert scored["tokens"] == [tokenizer().decode([token]) for token in ids]
    assert scored["token_logprobs"][0] is None
    assert scored["token_logprobs"][1:] == pytest.approx(
        [float(place[token]) for place, token in zip(expected, ids[1:], strict=False)], abs=1e-4
    )
    assert scored["top_logprobs"][0] is None
    for place, told in zip(expected, scored["top_logprobs"][1:], strict=False):
        assert sorted(told.values())[-2:] == pytest.approx(
            sorted(place.topk(2).values.tolist()), abs=1e-4
        )


def test_a_conversation_is_scored_in_pieces_as_in_one(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    asked = {"model": NAME, "messages": messages, "max_tokens": 6, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 2}
    whole = server.post("/v1/chat/completions", asked)[1]["choices"][0]["logprobs"]["content"]
    said = server.ask("POST", "/v1/chat/completions", {**asked, "stream": True})[1]
    pieces = [one["choices"][0]["logprobs"] for one in events(said)[:-1]]
    assert [one for piece in pieces if piece for one in piece["content"]] == whole
    for one in whole:
        # Greedily the token that is taken is the likeliest one.
        assert one["top_logprobs"][0]["logprob"] == one["logprob"]
        assert len(one["top_logprobs"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_to_a_prompt_are_drawn_apart(
    server: Server, engine: Engine, stream: bool
) -> None:
    drawn: dict[str, Any] = {"temperature": 1.5, "top_k": 40}
    asked = body(max_tokens=6, seed=3, n=3, stream=stream, **drawn)
    status, said = server.ask(
        "POST", "/v1/completions", asked | {"stream_options": {"include_usage": True}}
    )
    assert status == 200
    bodies = events(said)[:-1] if stream else [json.loads(said)]
    texts = ["", "", ""]
    for choice in (choice for one in bodies for choice in one["choices"]):
        texts[choice["index"]] += choice["text"]
    expected = [alone(engine, "Rose", max_new_tokens=6, seed=seed, **drawn) for seed in (3, 4, 5)]
    assert texts == [result.text for result in expected]
    assert bodies[-1]["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": sum(len(result.token_ids) for result in expected),
        "total_tokens": 4 + sum(len(result.token_ids) for result in expected),
    }


def test_a_conversation_goes_through_the_models_template(server: Server, engine: Engine) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": parts}]
    asked = {"model": NAME, "messages": messages, "max_tokens": 6, "temperature": 0}
    expected = alone(engine, "<system>S<user>Hi!<answer>", max_new_tokens=6)
    status, whole = server.post("/v1/chat/completions", asked)
    assert status == 200
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    first, *pieces, counts, done = events(server.ask("POST", "/v1/chat/completions", streamed)[1])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [piece["choices"][0]["delta"].get("content", "") for piece in pieces]
    assert "".join(texts) == expected.text
    assert counts["choices"] == []
    assert counts["usage"] == whole["usage"]
    assert done == "[DONE]"


def test_a_template_gets_its_own_variables(server: Server, engine: Engine) -> None:
    asked = {"model": NAME, "messages": [{"role": "u", "content": "Hi"}], "max_tokens": 4}
    asked |= {"temperature": 0, "chat_template_kwargs": {"note": "!"}}
    expected = alone(engine, "<u>Hi!<answer>", max_new_tokens=4)
    answer = server.post("/v1/chat/completions", asked)[1]
    assert answer["choices"][0]["message"]["content"] == expected.text


@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
def test_a_load_generator_gets_as_many_tokens_as_it_wants_all_counted(
    server: Server, kind: str
) -> None:
    """Also behind tokens that end a text, and with a count in every piece."""
    say = {"messages": [{"role": "u", "content": "a"}]} if kind[1] == "h" else {"prompt": "Rose"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = {"model": NAME, **say, "max_tokens": 60, "ignore_eos": True, "temperature": 2.0}
    streamed = {**asked, "stream": True, "stream_options": options}
    for seed, n in ((1, 1), (2, 1), (3, 2)):
        body = streamed | {"seed": seed, "n": n}
        *pieces, counts, done = events(server.ask("POST", f"/v1/{kind}", body)[1])
        written = [piece["usage"]["completion_tokens"] for piece in pieces]
        assert written == sorted(written)
        assert 0 < written[0] < written[-1] == 60 * n
        assert counts["usage"] == pieces[-1]["usage"]
        assert done == "[DONE]"
    plain = server.post(f"/v1/{kind}", asked | {"seed": 1})[1]
    assert plain["usage"]["completion_tokens"] == 60
    assert plain["choices"][0]["finish_reason"] == "length"


def test_without_a_limit_a_conversation_may_fill_the_context(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    asked = {"model": NAME, "messages": messages, "temperature": 0}
    status, whole = server.post("/v1/chat/completions", asked)
    assert status == 200
    used = whole["usage"]["total_tokens"]
    reason = whole["choices"][0]["finish_reason"]
    assert reason == "stop" or used == LENGTH


def chat(**template_arguments: Any) -> dict[str, Any]:
    said = {"model": NAME, "messages": [{"role": "u", "content": "a"}]}
    return {**said, "chat_template_kwargs": template_arguments}


BAD: dict[str, tuple[str, Any, int, str]] = {
    "no JSON": ("/v1/completions", b"{", 400, "not valid JSON"),
    "no UTF-8": ("/v1/completions", b'{"model": "\xff"}', 400, "not valid JSON"),
    "no object": ("/v1/completions", [], 400, "expected a JSON object, got a list"),
    "no model": ("/v1/completions", {"prompt": "a"}, 400, "model: expected the name of a model"),
    "other model": ("/v1/completions", body() | {"model": "x"}, 404, "no model 'x' here, but tiny"),
    "empty prompt": ("/v1/completions", body(""), 400, "a prompt with at least one token"),
    "too long": ("/v1/completions", body("a" * LENGTH, max_tokens=1), 400, "length is 96 tokens"),
    "too many": ("/v1/completions", body("a", max_tokens=LENGTH), 400, "length is 96 tokens"),
    "bad token": ("/v1/completions", body() | {"prompt": [4, 259]}, 400, "259"),
    "refused template": (
        "/v1/chat/completions",
        {"model": NAME, "messages": [{"role": "tool", "content": "a"}]},
        400,
        "the chat template refuses these messages: no tools",
    ),
    "replaced template": (
        "/v1/chat/completions",
        chat(chat_template="x"),
        400,
        "expected variables of the chat template, got chat_template",
    ),
    "half a character": (
        "/v1/chat/completions",
        chat(note="\ud800"),
        400,
        "expected valid unicode",
    ),
    "half a character told": (
        "/v1/chat/completions",
        chat(wrong="\ud800"),
        400,
        "the chat template refuses these messages: not \\ud800",
    ),
    "not the template's": (
        "/v1/chat/completions",
        chat(conversations=[]),
        400,
        "expected variables of the chat template, got conversations",
    ),
    "no path": ("/v1/nothing", {}, 404, "no '/v1/nothing' here, but /v1/models, /v1/completions"),
    "other method": ("/v1/models", {}, 405, ", got POST"),
    "other card": ("/v1/completions", body(stream=True) | {"model": "x"}, 404, "no model 'x'"),
    "large": ("/v1/completions", b" " * ((8 << 20) + 1), 413, "at most 8388608 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_a_4xx_in_openais_shape(server: Server, name: str) -> None:
    path, asked, expected, text = BAD[name]
    status, answer = server.post(path, asked)
    assert status == expected
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert text in answer["error"]["message"]


def test_a_wrong_method_is_told_the_right_one(server: Server) -> None:
    connection = server.connect()
    connection.request("GET", "/v1/completions")
    response = connection.getresponse()
    assert (response.status, response.getheader("Allow")) == (405, "POST")
    connection.close()


def test_a_compressed_body_is_refused_by_its_encoding(server: Server) -> None:
    connection = server.connect()
    raw = json.dumps(body(max_tokens=1)).encode()
    connection.request("POST", "/v1/completions", raw, {"Content-Encoding": "identity"})
    response = connection.getresponse()
    assert (response.status, bool(response.read())) == (200, True)
    packed = gzip.compress(raw)
    connection.request("POST", "/v1/completions", packed, {"Content-Encoding": "gzip"})
    response = connection.getresponse()
    assert response.status == 415
    assert "got Content-Encoding 'gzip'" in json.load(response)["error"]["message"]
    connection.close()


def test_a_connection_that_a_client_may_use_again_stays_open(server: Server) -> None:
    connection = server.connect()
    connection.request("GET", "/health")
    connection.getresponse().read()
    # Load generators keep connections for 5 s and more.
    connection.sock.settimeout(5.5)
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)
    connection.close()


def test_more_connections_are_taken_than_shells_allow(server: Server) -> None:
    """The fixture starts it with room for a few hundred."""
    limits = Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
    soft, hard = next(line.split()[3:5] for line in limits if line.startswith("Max open files"))
    assert soft == str(min(65536, int(hard)))


def test_facts_are_there_to_be_asked_for(server: Server) -> None:
    assert server.ask("GET", "/health") == (200, '{"status":"ok"}')
    for path in ("/health", "/metrics", "/v1/models", f"/v1/models/{NAME}"):
        assert server.ask("HEAD", path) == (200, "")
    status, text = server.ask("GET", "/v1/models")
    assert status == 200
    (card,) = json.loads(text)["data"]
    assert (card["id"], card["max_model_len"]) == (NAME, LENGTH)
    assert json.loads(server.ask("GET", f"/v1/models/{NAME}")[1]) == card
    assert server.ask("GET", "/v1/models/x")[0] == 404
    before = server.metric("secateur_generated_tokens_total")
    used = server.post("/v1/completions", body(max_tokens=5))[1]["usage"]
    after = server.metric("secateur_generated_tokens_total")
    assert after - before == used["completion_tokens"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: Server, stream: bool) -> None:
    """The eight slots are taken by clients that leave early; others are served afterwards."""
    cancelled = 'secateur_sequences_total{reason="cancelled"}'
    before = server.metric(cancelled)
    raw = json.dumps(body("a", max_tokens=LENGTH - 1, stream=stream, temperature=2, seed=5))
    request = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n{raw}"
    host, port = server.address.split(":")
    clients = [socket.create_connection((host, int(port))) for _ in range(40)]
    for client in clients:
        client.sendall(request.encode())
    eventually(lambda: server.metric("secateur_waiting") > 0)
    for client in clients:
        client.close()
    eventually(lambda: server.metric("secateur_running") == 0)
    assert server.metric("secateur_waiting") == 0
    assert server.metric(cancelled) > before
    assert server.post("/v1/completions", body(max_tokens=3))[0] == 200


def test_a_client_that_leaves_before_it_has_asked_is_no_error_of_the_server(
    server: Server,
) -> None:
    host, port = server.address.split(":")
    left = 'secateur_requests_total{path="/v1/completions",status="499"}'
    failed = 'secateur_requests_total{path="/v1/completions",status="500"}'
    before = (server.metric(left), server.metric(failed))
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    eventually(lambda: server.metric(left) == before[0] + 1)
    assert server.metric(failed) == before[1]


@pytest.mark.parametrize(
    ("drain", "signals"),
    most_telling(
        [("30", [signal.SIGTERM]), ("0", [signal.SIGTERM]), ("30", TWICE)],
        [("30", [signal.SIGTERM]), ("30", TWICE)],
    ),
)
def test_told_to_stop_in_mid_flight_it_ends_every_answer(
    folder: Path, drain: str, signals: list[signal.Signals]
) -> None:
    """With time to drain all streams finish; without, they end with an error. Exit code 0."""
    server = Server(folder, "--max-batch-size", "2", "--drain-seconds", drain)
    asked = body("a", max_tokens=LENGTH - 1, stream=True, temperature=2, seed=3)
    begun = 'secateur_requests_total{path="/v1/completions",status="200"}'

    def one(_: int) -> Any:
        return events(server.ask("POST", "/v1/completions", asked)[1])[-1]

    with ThreadPoolExecutor(12) as pool:
        streams = [pool.submit(one, number) for number in range(12)]
        # All of them were begun: later ones would be refused.
        eventually(lambda: server.metric(begun) == 12)
        for number in signals:
            server.send_signal(number)
            # One that comes while another is pending is lost.
            time.sleep(0.1)
        last = [stream.result() for stream in streams]
    done = server.ended()
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    if drain == "30" and signals != TWICE:
        assert last == ["[DONE]"] * 12
    else:
        faults = [entry for entry in last if entry != "[DONE]"]
        assert faults
        assert {fault["error"]["code"] for fault in faults} == {"shutting_down"}
        assert {fault["error"]["type"] for fault in faults} == {"server_error"}
