"""Runs a service until it is told to stop, and stops cleanly."""

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from secateur.errors import SecateurError
from secateur.serve.app import build_app
from secateur.serve.service import Service

_LOOK_EVERY = 0.05
# After everything was told to end: for the last bytes to leave.
_GRACE = 5.0
_LAST_WORDS = 1.0
_STOP_SECONDS = 10.0
_BACKLOG = 2048
# Shells allow 1024 open files, which load generators use up; then not even probes are answered.
_OPEN_FILES = 65536
# Idle connections stay open longer than clients and proxies keep theirs (httpx 5 s, aiohttp 15 s,
# nginx and load balancers 60 s): who closes second may just have sent a request.
_KEEP_ALIVE_SECONDS = 75


def reserve(host: str, port: int) -> socket.socket:
    """Take an address before a model is loaded for it; clients are refused until it is served.

    Args:
        host: address to listen on.
        port: 0 for any that is free.

    Raises:
        SecateurError: nothing can listen there, or what serving needs is not installed.
    """
    _uvicorn()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with ExitStack() as unless_bound:
            place = unless_bound.enter_context(socket.socket(family))
            # A server that was stopped a moment ago still holds its port otherwise.
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
            unless_bound.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from None
    return place


def _cannot_listen(host: str, port: int, error: Exception) -> SecateurError:
    return SecateurError(f"cannot listen on {host} port {port}: {error}")


def run_server(
    service: Service,
    place: socket.socket,
    drain_seconds: float,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then return.

    On a signal no new request is taken; those under way have `drain_seconds` to finish, then they
    end with an error event. A second SIGINT stops at once.

    Args:
        service: not yet started.
        place: where to listen, from `reserve`.
        drain_seconds: for requests under way.
        on_ready: is told the address once connections are accepted.

    Raises:
        SecateurError: something else listens there since.
    """
    uvicorn = _uvicorn()
    host, port = place.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    allow_many_connections()
    try:
        place.listen(_BACKLOG)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    config = uvicorn.Config(
        build_app(service),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(drain_seconds + _GRACE),
    )
    with _signals_not_fatal():
        asyncio.run(
            _serve(
                uvicorn.Server(config),
                service,
                place,
                drain_seconds,
                lambda: on_ready(f"http://{shown}:{port}"),
            )
        )


def allow_many_connections() -> None:
    """Raise the limit of open files, of which each connection is one; where it may be raised."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if highest == resource.RLIM_INFINITY else min(_OPEN_FILES, highest)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError:
        raise SecateurError(
            "expected FastAPI, prometheus-client and uvicorn, not all of which are installed: "
            "pip install 'secateur[serve]'"
        ) from None
    return uvicorn


@contextmanager
def _signals_not_fatal() -> Iterator[None]:
    """Uvicorn raises the signals that stopped it once more when it is done: let them do nothing."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(
    server: Any,
    service: Service,
    place: socket.socket,
    drain_seconds: float,
    on_ready: Callable[[], None],
) -> None:
    service.start()
    serving = asyncio.ensure_future(server.serve(sockets=[place]))
    told = False
    while not server.should_exit and not serving.done():
        if server.started and not told:
            on_ready()
            told = True
        await asyncio.sleep(_LOOK_EVERY)
    service.begin_drain()
    until = time.monotonic() + drain_seconds
    while not serving.done() and not server.force_exit and time.monotonic() < until:
        await asyncio.wait({serving}, timeout=_LOOK_EVERY)
    service.abort_all()
    await serving
    # Told to stop at once, uvicorn does not wait for answers to tell their clients that they end.
    last = time.monotonic() + _LAST_WORDS
    while service.num_open and time.monotonic() < last:
        await asyncio.sleep(_LOOK_EVERY)
    service.stop(_LAST_WORDS if server.force_exit else _STOP_SECONDS)
