"""The worker and the service over an engine whose every step the test decides."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from served import tokenizer

from secateur.engine import GenerationOptions, Piece, Result, ScoredToken, Timing
from secateur.errors import SecateurError
from secateur.serve import service as service_module
from secateur.serve.app import build_app
from secateur.serve.bodies import TokenLogprob
from secateur.serve.faults import RequestFault
from secateur.serve.requests import chat_request, completion_request
from secateur.serve.service import Service
from secateur.serve.worker import EngineWorker


class Scripted:
    """One letter a step for every request, once the test opens the gate."""

    max_length = 20
    max_batch_size = 1

    def __init__(self) -> None:
        self.open = threading.Event()
        self.left: dict[int, int] = {}
        self.cancelled: list[int] = []
        self.asked: list[GenerationOptions] = []
        self.refusal = ""
        self.failure = ""
        self._next = 0

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    @property
    def num_running(self) -> int:
        return 0

    @property
    def num_waiting(self) -> int:
        return len(self.left)

    def submit(self, prompt: Sequence[int], options: GenerationOptions) -> int:
        if self.refusal:
            raise SecateurError(self.refusal)
        self._next += 1
        self.asked.append(options)
        self.left[self._next] = options.max_new_tokens
        return self._next

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)
        self.left.pop(request_id, None)

    def step(self) -> list[Piece]:
        self.open.wait()
        if self.failure:
            raise RuntimeError(self.failure)
        return [self._piece(request_id) for request_id in list(self.left)]

    def _piece(self, request_id: int) -> Piece:
        self.left[request_id] -= 1
        letter = chr(ord("a") + request_id)
        if self.left[request_id] > 0:
            return Piece(request_id, letter, (5,))
        del self.left[request_id]
        text = letter * self.asked[request_id - 1].max_new_tokens
        timing = Timing(math.nan, ())
        scores = (ScoredToken(5, -0.5),) if self.asked[request_id - 1].logprobs else ()
        result = Result(text, (5,), "length", 2, timing, scores or None)
        return Piece(request_id, letter, (5,), result, scores)


def serve(test: Callable[[Service, Scripted], Awaitable[None]], max_waiting: int = 2) -> None:
    async def run() -> None:
        engine = Scripted()
        service = Service("m", EngineWorker(engine, max_waiting), tokenizer())
        service.start()
        try:
            await asyncio.wait_for(test(service, engine), 20)
        finally:
            engine.open.set()
            assert service.stop()

    asyncio.run(run())


def counted(service: Service, name: str) -> float:
    """One of the counters, by its name and labels."""
    lines = service.metrics.text(0, 0).decode().splitlines()
    return next(float(x.split()[-1]) for x in lines if x.startswith(f"secateur_{name} "))


def wanted(**more: Any) -> Any:
    return completion_request({"model": "m", "prompt": "ab", "max_tokens": 3, **more})


def test_texts_of_several_prompts_stay_apart() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        answer = await service.begin(wanted(prompt=["ab", "cd"]))
        engine.open.set()
        choices = await answer.choices()
        assert [(c.index, c.text, c.finish_reason) for c in choices] == [
            (0, "bbb", "length"),
            (1, "ccc", "length"),
        ]
        answer.close()
        assert engine.cancelled == []
        assert service.num_open == 0
        assert counted(service, "generated_tokens_total") == 6
        # The first token of each is timed by itself, the other two from token to token.
        assert counted(service, "time_to_first_token_seconds_count") == 2
        assert counted(service, "inter_token_seconds_count") == 4

    serve(test)


def test_a_slow_reader_makes_no_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], time=time.time)
    monkeypatch.setattr(service_module, "time", clock)

    async def test(service: Service, engine: Scripted) -> None:
        answer = await service.begin(wanted())
        engine.open.set()
        while answer._updates.qsize() < 3:
            await asyncio.sleep(0.01)
        now[0] = 10.0
        await answer.choices()
        assert counted(service, "time_to_first_token_seconds_sum") == 0.0
        assert counted(service, "inter_token_seconds_sum") == 0.0
        assert counted(service, "inter_token_seconds_count") == 2

    serve(test)


def test_log_probabilities_come_with_the_text_of_their_token() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        answer = await service.begin(wanted(logprobs=0))
        engine.open.set()
        (choice,) = await answer.choices()
        # The engine of this test scores its last piece only.
        assert choice.logprobs == (TokenLogprob(token=tokenizer().decode([5]), logprob=-0.5),)

    serve(test)


def test_several_answers_to_a_prompt_have_seeds_of_their_own_and_count_it_once() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        asked = wanted(prompt=["abcd", "ef"], n=2, seed=2**63 - 1, max_tokens=1, top_k=7)
        answer = await service.begin(asked)
        engine.open.set()
        choices = await answer.choices()
        answer.close()
        assert [(c.index, c.prompt_tokens) for c in choices] == [(0, 4), (1, 0), (2, 2), (3, 0)]
        assert [one.seed for one in engine.asked] == [2**63 - 1, 0] * 2
        assert {one.top_k for one in engine.asked} == {7}

    serve(test, max_waiting=3)


def test_without_a_seed_no_two_answers_are_drawn_alike() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        for _ in range(2):
            answer = await service.begin(wanted(prompt=["ab", "ab"], n=2, max_tokens=1))
            engine.open.set()
            await answer.choices()
            answer.close()
        assert len({one.seed for one in engine.asked}) == 8

    serve(test, max_waiting=3)


def test_closing_frees_every_slot_of_an_answer() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        answer = await service.begin(wanted(prompt=["ab", "cd"]))
        answer.close()
        answer.close()
        assert engine.cancelled == [1, 2]
        assert service.worker.num_open == 0
        assert counted(service, 'sequences_total{reason="cancelled"}') == 2

    serve(test)


def test_more_than_may_wait_are_refused_and_leave_nothing_behind() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        await service.begin(wanted(prompt=["ab", "cd"]))
        message = "2 sequences run or wait, and there is room for 3: try again later"
        with pytest.raises(RequestFault, match=message) as caught:
            await service.begin(wanted(prompt=["ab", "cd"]))
        assert (caught.value.status, caught.value.code) == (429, "overloaded")
        assert caught.value.body()["error"]["type"] == "rate_limit_error"
        # Not even the first of them was begun.
        assert engine.cancelled == []
        assert len(engine.asked) == 2
        assert service.num_open == 1
        await service.begin(wanted())
        service._encoder.close()
        # Refused before its prompt is looked at.
        with pytest.raises(RequestFault, match="3 sequences run or wait"):
            await service.begin(wanted())

    serve(test)


def test_free_slots_are_no_places_to_wait() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        engine.max_batch_size = 4
        await service.begin(wanted(prompt=["a", "b", "c", "d", "e"]))
        assert len(engine.asked) == 5

    serve(test, max_waiting=1)


def test_more_than_there_is_room_for_at_any_time_is_refused_for_good() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        with pytest.raises(RequestFault, match="expected at most 3 answers, got 4") as caught:
            await service.begin(wanted(n=4))
        assert caught.value.status == 400

    serve(test)


def test_a_usual_length_that_nobody_asked_for_gives_way() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        for length in (2, 15):
            await service.begin(completion_request({"model": "m", "prompt": "a" * length}))
        assert [options.max_new_tokens for options in engine.asked] == [16, 5]

    serve(test)


@pytest.mark.parametrize(
    ("path", "shown", "status"),
    [
        ("/v1/models", "Bearer secret", 200),
        ("/v1/models", "bearer  secret", 200),
        ("/v1/models", "Bearer secre", 401),
        ("/v1/models", "Basic secret", 401),
        ("/v1/models", "secret", 401),
        ("/v1/models", "Bearer", 401),
        ("/v1/models", None, 401),
        ("/v1/nothing", None, 401),
        ("/health", None, 200),
    ],
)
def test_a_key_is_asked_for(path: str, shown: str | None, status: int) -> None:
    headers = [] if shown is None else [(b"authorization", shown.encode())]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def test(service: Service, engine: Scripted) -> None:
        service.api_key = "secret"
        await build_app(service)({**scope, "query_string": b""}, receive, send)
        assert sent[0]["status"] == status
        if status == 401:
            error = json.loads(sent[1]["body"])["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        known = "other" if path == "/v1/nothing" else path
        assert counted(service, f'requests_total{{path="{known}",status="{status}"}}') == 1

    serve(test)


def test_what_the_engine_refuses_is_the_clients_fault() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        engine.refusal = "token 7 is not of this model"
        with pytest.raises(RequestFault, match="token 7 is not of this model") as caught:
            await service.begin(wanted())
        assert caught.value.status == 400

    serve(test)


def test_a_failing_engine_ends_what_is_open_and_takes_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(service: Service, engine: Scripted) -> None:
        answer = await service.begin(wanted())
        engine.failure = "out of memory"
        engine.open.set()
        with pytest.raises(RequestFault, match="the engine failed: RuntimeError: out of memory"):
            await answer.choices()
        with pytest.raises(RequestFault, match="out of memory") as caught:
            await service.begin(wanted())
        assert caught.value.status == 500

    serve(test)
    # Clients are told in a line; whoever runs the server sees where it happened.
    assert "in step" in caplog.text


def test_draining_refuses_new_requests_and_can_end_open_ones() -> None:
    async def test(service: Service, engine: Scripted) -> None:
        answer = await service.begin(wanted())
        service.begin_drain()
        with pytest.raises(RequestFault, match="shutting down") as caught:
            await service.begin(wanted())
        assert caught.value.status == 503
        service.abort_all()
        with pytest.raises(RequestFault, match="shutting down"):
            await answer.choices()
        answer.close()
        assert engine.cancelled == [1]

    serve(test)


@pytest.mark.parametrize(
    ("prompt", "tokens", "param"), [("a" * 20, 1, "prompt"), ("a" * 18, 3, "max_tokens")]
)
def test_what_is_too_long_is_refused_by_the_field_at_fault(
    prompt: str, tokens: int, param: str
) -> None:
    async def test(service: Service, engine: Scripted) -> None:
        with pytest.raises(RequestFault, match="model's maximum context length is 20") as caught:
            await service.begin(wanted(prompt=prompt, max_tokens=tokens))
        assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")
        assert ("prompt is too long" in str(caught.value)) == (param == "prompt")
        await service.begin(wanted(prompt="a" * 18, max_tokens=2))

    serve(test)


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_that_no_context_can_hold_is_not_even_encoded(
    chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The longest of this tokenizer's tokens is <pad>.
    longest = 20 * len("<pad>")

    def request(characters: int) -> Any:
        if not chat:
            return wanted(prompt="a" * characters)
        # What the template adds counts, too.
        text = "a" * (characters - len("<user><answer>"))
        return chat_request({"model": "m", "messages": [{"role": "user", "content": text}]})

    async def test(service: Service, engine: Scripted) -> None:
        with pytest.raises(RequestFault, match="but the prompt has 100 and"):
            await service.begin(request(longest))
        monkeypatch.setattr(service._encoder._tokenizer, "encode", None)
        with pytest.raises(RequestFault, match=r"prompt is too long: .* 101 characters") as caught:
            await service.begin(request(longest + 1))
        assert caught.value.param == ("messages" if chat else "prompt")
        assert caught.value.code == "context_length_exceeded"

    serve(test)
