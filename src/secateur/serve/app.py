"""The HTTP side: OpenAI's endpoints over a `Service`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from hmac import compare_digest
from typing import Any

from secateur.serve import bodies
from secateur.serve.bodies import Choice, Envelope
from secateur.serve.faults import RequestFault, shutting_down
from secateur.serve.fields import shown
from secateur.serve.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    parse_body,
)
from secateur.serve.requests import chat_request as checked_chat
from secateur.serve.requests import completion_request as checked_completion
from secateur.serve.service import Answer, Service

MOST_BYTES = 8 << 20
"""Of the body of a request."""

_CLIENT_GONE = 499
_PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics")


def build_app(service: Service) -> Any:
    """The ASGI application: a FastAPI app whose answers are counted.

    Args:
        service: is to be started by whoever runs the application.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import HTTPException

    app = FastAPI(title="Secateur", openapi_url=None)
    app.add_exception_handler(RequestFault, _told)
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(404, _told)
    app.add_exception_handler(405, _told)
    app.add_exception_handler(Exception, _told)
    _add_facts(app, service)
    _add_generation(app, service)
    guarded = app if service.api_key is None else _Guarded(app, service.api_key)
    return _Counted(guarded, service)


def _add_facts(app: Any, service: Service) -> None:
    from fastapi import Response
    from fastapi.responses import JSONResponse, PlainTextResponse

    async def models() -> Any:
        return JSONResponse({"object": "list", "data": [_card(service)]})

    async def model(name: str) -> Any:
        if name != service.name:
            raise RequestFault(
                f"there is no model {name!a} here, but {service.name}",
                status=404,
                code="model_not_found",
            )
        return JSONResponse(_card(service))

    async def health() -> Response:
        if service.draining:
            raise shutting_down()
        if service.worker.failure is not None:
            raise RequestFault(f"the engine failed: {service.worker.failure}", status=503)
        return JSONResponse({"status": "ok"})

    async def metrics() -> Response:
        engine = service.worker.engine
        text = service.metrics.text(engine.num_running, engine.num_waiting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    routes = {"/v1/models": models, "/health": health, "/metrics": metrics}
    for path, answer in {**routes, "/v1/models/{name:path}": model}.items():
        # Probes of uptime ask for the head alone.
        app.add_api_route(path, answer, methods=["GET", "HEAD"])


def _card(service: Service) -> dict[str, Any]:
    limit = service.worker.engine.max_length
    card = {"id": service.name, "object": "model", "created": service.created}
    return {**card, "owned_by": "secateur", "max_model_len": limit}


def _add_generation(app: Any, service: Service) -> None:
    from fastapi import Request

    async def completions(request: Request) -> Any:
        wanted = checked_completion(parse_body(await _read(request)), service.defaults)
        return await _answered(request, service, wanted, Envelope("completion", service.name))

    async def chat_completions(request: Request) -> Any:
        wanted = checked_chat(parse_body(await _read(request)), service.defaults)
        return await _answered(request, service, wanted, Envelope("chat", service.name))

    app.add_api_route("/v1/completions", completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"])


async def _read(request: Any) -> bytes:
    """The body as it was sent, given up as soon as it is too large or its client has gone."""
    from starlette.requests import ClientDisconnect

    encoding = request.headers.get("content-encoding", "")
    if encoding.lower() not in ("", "identity"):
        raise RequestFault(
            f"expected a body that is not compressed, got Content-Encoding {shown(encoding)}",
            status=415,
            code="unsupported_encoding",
        )
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                raise RequestFault(
                    f"expected a body of at most {MOST_BYTES} bytes", status=413, code="too_large"
                )
            parts.append(part)
    except ClientDisconnect:
        # Nobody reads this; it is counted.
        raise RequestFault("the body broke off", status=_CLIENT_GONE) from None
    return b"".join(parts)


async def _answered(
    request: Any, service: Service, wanted: CompletionRequest | ChatRequest, envelope: Envelope
) -> Any:
    from fastapi import Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.background import BackgroundTask

    answer = await service.begin(wanted)
    if wanted.stream:
        # The task runs however the stream ends, also where it was never read from.
        return StreamingResponse(
            _events(answer, _counting(envelope, wanted)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            background=BackgroundTask(_close, answer),
        )
    try:
        choices = await _unless_gone(request, answer)
    finally:
        answer.close()
    if choices is None:
        # A client that has gone reads no answer.
        return Response(status_code=_CLIENT_GONE)
    return JSONResponse(envelope.whole(choices))


def _counting(envelope: Envelope, wanted: GenerationRequest) -> Envelope:
    return replace(
        envelope, counts_tokens=wanted.include_usage, counts_each=wanted.continuous_usage
    )


async def _close(answer: Answer) -> None:
    answer.close()


async def _events(answer: Answer, envelope: Envelope) -> AsyncIterator[str]:
    """The pieces of an answer as server-sent events; a fault on the way is the last of them."""
    begun: set[int] = set()
    try:
        async for delta in answer.deltas():
            so_far = answer.usage if envelope.counts_each else None
            if envelope.kind == "chat" and delta.index not in begun:
                begun.add(delta.index)
                yield bodies.event(envelope.start(delta.index, so_far))
            reason = None if delta.choice is None else delta.choice.finish_reason
            piece = envelope.piece(delta.index, delta.text, reason, delta.logprobs, so_far)
            yield bodies.event(piece)
        if envelope.counts_tokens:
            yield bodies.event(envelope.counts(answer.usage))
        yield bodies.DONE
    except RequestFault as fault:
        yield bodies.event(fault.body())
    finally:
        answer.close()


async def _unless_gone(request: Any, answer: Answer) -> list[Choice] | None:
    """The finished sequences; None if the client went away first."""
    work = asyncio.ensure_future(answer.choices())
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _disconnect(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _told(request: Any, error: Exception) -> Any:
    """Any error in OpenAI's shape."""
    from fastapi.responses import JSONResponse

    if not isinstance(error, RequestFault):
        status = getattr(error, "status_code", 500)
        # Of a wrong method they say which would be right.
        headers = getattr(error, "headers", None)
        text = _reason(request, status, headers or {})
        error = RequestFault(text, status=status, code="internal" if status >= 500 else None)
        return JSONResponse(error.body(), status_code=status, headers=headers)
    return JSONResponse(error.body(), status_code=error.status)


def _reason(request: Any, status: int, headers: Mapping[str, str]) -> str:
    """Why there was no answer, where the framework found it: mostly a wrong base URL."""
    path = shown(request.scope["path"])
    if status == 404:
        return f"there is no {path} here, but {', '.join(_PATHS)}"
    if status == 405:
        return f"{path} takes {headers.get('Allow', 'other methods')}, got {request.method}"
    return "internal error" if status >= 500 else "the request is wrong"


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Counted:
    """Counts answers by path and status."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        known = path if path in _PATHS else "other"

        async def counting(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.requests.labels(known, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counting)


class _Guarded:
    """Answers requests to the API only where they show the key; `/health` and `/metrics` all."""

    def __init__(self, app: Any, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        shown = dict(scope.get("headers", [])).get(b"authorization", b"")
        # The scheme's name may be written in any case.
        scheme, _, key = shown.partition(b" ")
        # In a time that does not tell how much of it is right.
        is_right = compare_digest(key.lstrip(b" "), self._key) and scheme.lower() == b"bearer"
        if scope.get("path", "").startswith("/v1/") and not is_right:
            fault = RequestFault(
                "expected the header Authorization: Bearer with the key of this server",
                status=401,
                code="invalid_api_key",
            )
            await (await _told(None, fault))(scope, receive, send)
            return
        await self._app(scope, receive, send)
