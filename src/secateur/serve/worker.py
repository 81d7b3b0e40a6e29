"""The thread that runs the engine, and the way from it to the server's event loop."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from secateur.engine import GenerationOptions, Piece
from secateur.serve.faults import RequestFault

_LOGGER = logging.getLogger(__name__)


class SteppedEngine(Protocol):
    """What of `secateur.Engine` the server needs."""

    max_length: int
    max_batch_size: int

    @property
    def has_work(self) -> bool:
        """Anything queued, running or in flight."""

    @property
    def num_running(self) -> int:
        """Requests in a slot."""

    @property
    def num_waiting(self) -> int:
        """Requests without one."""

    def submit(self, prompt: Sequence[int], options: GenerationOptions) -> int:
        """Queue a request; from any thread."""

    def cancel(self, request_id: int) -> None:
        """End a request early; from any thread."""

    def step(self) -> list[Piece]:
        """Compute a little for everyone."""


@dataclass(frozen=True)
class Broken:
    """The engine failed: nothing more comes."""

    reason: str


Update = Piece | Broken
Sink = Callable[[Update], None]


class EngineWorker:
    """Steps an engine in a thread of its own while there is work, and hands out what comes.

    `submit` and `cancel` may be called from any thread. Sinks are called on the event loop that
    `start` was called from, one call a loop turn for all the pieces of a step.
    """

    def __init__(self, engine: SteppedEngine, max_waiting: int = 1024) -> None:
        """Hold an engine that nobody else uses from now on.

        Args:
            engine: whose `step` only this worker's thread calls.
            max_waiting: requests that may wait for a slot; more are refused.
        """
        self.engine = engine
        self.max_waiting = max_waiting
        self.failure: str | None = None
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="secateur-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; the running event loop is the one that sinks are called on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End the thread after the step that it is in; whether it ended within `seconds`."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def num_open(self) -> int:
        """Requests that have not had their last piece."""
        return len(self._sinks)

    def require_room(self, count: int) -> None:
        """Refuse what cannot be taken now, before work is spent on it.

        Args:
            count: of sequences that are to be submitted.

        Raises:
            RequestFault: there are neither slots nor places to wait for so many, or the engine has
                failed.
        """
        if self.failure is not None:
            raise engine_failed(self.failure)
        # Those that wait are given free slots by the next step.
        slots = self.engine.max_batch_size
        ahead = self.engine.num_running + self.engine.num_waiting
        room = slots + self.max_waiting
        if count > room:
            raise RequestFault(f"expected at most {room} answers, got {count}", param="n")
        if ahead + count > room:
            raise RequestFault(
                f"{ahead} sequences run or wait, and there is room for {room}: try again later",
                status=429,
                code="overloaded",
            )

    def submit(self, prompt: Sequence[int], options: GenerationOptions, sink: Sink) -> int:
        """Queue a request; every piece of it goes to `sink`, the last one with a result.

        Raises:
            SecateurError: the engine refuses it.
            RequestFault: as `require_room`.
        """
        with self._lock:
            self.require_room(1)
            # Under the lock, so that the first piece finds its sink.
            request_id = self.engine.submit(prompt, options)
            self._sinks[request_id] = sink
        self._wake.set()
        return request_id

    def cancel(self, request_id: int) -> None:
        """Free the request's slot. Nothing more is handed out for it."""
        with self._lock:
            if self._sinks.pop(request_id, None) is not None and self.failure is None:
                self.engine.cancel(request_id)
        self._wake.set()

    def _run(self) -> None:
        while True:
            # Cleared first: whatever is set from here on is seen by one of the checks or the wait.
            self._wake.clear()
            if self._stopping:
                return
            if not self.engine.has_work:
                self._wake.wait()
                continue
            try:
                pieces = self.engine.step()
            except Exception as error:  # the thread must not die unseen, whatever the model raises
                _LOGGER.exception("the engine failed")
                self._fail(f"{type(error).__name__}: {error}")
                return
            if pieces:
                self._hand_out(pieces)

    def _hand_out(self, pieces: Sequence[Piece]) -> None:
        with self._lock:
            found = [(self._sinks.get(piece.request_id), piece) for piece in pieces]
            for piece in pieces:
                if piece.result is not None:
                    self._sinks.pop(piece.request_id, None)
        self._on_loop([(sink, piece) for sink, piece in found if sink is not None])

    def _fail(self, reason: str) -> None:
        with self._lock:
            self.failure = reason
            sinks = list(self._sinks.values())
            self._sinks.clear()
        self._on_loop([(sink, Broken(reason)) for sink in sinks])

    def _on_loop(self, updates: Sequence[tuple[Sink, Update]]) -> None:
        def deliver() -> None:
            for sink, update in updates:
                sink(update)

        assert self._loop is not None
        if updates and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)


def engine_failed(reason: str) -> RequestFault:
    """The engine cannot go on."""
    return RequestFault(f"the engine failed: {reason}", status=500, code="engine_failed")
