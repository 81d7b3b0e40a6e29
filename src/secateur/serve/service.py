"""What the server does between a checked request and the pieces of its answer."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from secateur.engine import GenerationOptions, Piece
from secateur.errors import SecateurError
from secateur.serve.bodies import Choice, usage
from secateur.serve.faults import RequestFault, shutting_down, too_long
from secateur.serve.fields import shown
from secateur.serve.metrics import Metrics
from secateur.serve.prompts import PromptEncoder
from secateur.serve.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    SamplingDefaults,
)
from secateur.serve.token_texts import TokenTexts
from secateur.serve.told import Delta, Told
from secateur.serve.worker import Broken, EngineWorker, Update, engine_failed

_SEED_BITS = 63
_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


class Answer:
    """The sequences of one request while they are generated.

    Closing it, at any time, frees their slots.
    """

    def __init__(self, service: "Service") -> None:
        """Wait for sequences; `Service.start` adds them."""
        self._service = service
        self._updates: asyncio.Queue[tuple[int, Update, float] | RequestFault] = asyncio.Queue()
        self._open: dict[int, int] = {}
        self._prompt_tokens: list[int] = []
        self._started: dict[int, float] = {}
        self._newest: dict[int, float] = {}
        self._told: list[Told] = []
        self._written = 0

    def add(
        self,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        is_another: bool = False,
        echo: str | None = None,
    ) -> None:
        """Submit one more sequence.

        Args:
            token_ids: its prompt.
            options: of the engine.
            is_another: to the prompt of the sequence before, whose tokens are not counted again.
            echo: the prompt's text if the answer is to begin with it.

        Raises:
            SecateurError: the engine refuses it.
        """
        index = len(self._prompt_tokens)
        self._prompt_tokens.append(0 if is_another else len(token_ids))

        def sink(update: Update) -> None:
            # Timed here: a client that reads slowly gets what has long been there.
            self._updates.put_nowait((index, update, time.perf_counter()))

        # Pieces come on this very loop, so none can come before these lines are done.
        request_id = self._service.worker.submit(token_ids, options, sink)
        self._open[index] = request_id
        self._started[index] = time.perf_counter()
        texts = self._service.token_texts
        self._told.append(Told(index, token_ids, texts, options.logprobs, echo))
        self._service.metrics.prompt_tokens.inc(len(token_ids))

    @property
    def usage(self) -> dict[str, int]:
        """Tokens that were read and written so far."""
        return usage(sum(self._prompt_tokens), self._written)

    def abort(self, fault: RequestFault) -> None:
        """Have whoever reads the answer meet `fault` next."""
        self._updates.put_nowait(fault)

    def close(self) -> None:
        """Cancel what is not finished."""
        for request_id in self._open.values():
            self._service.worker.cancel(request_id)
            self._service.metrics.sequences.labels("cancelled").inc()
        self._open.clear()
        self._service.forget(self)

    async def deltas(self) -> AsyncIterator[Delta]:
        """Text as it comes, of all sequences, until all are finished.

        Raises:
            RequestFault: the engine failed, or the server shuts down.
        """
        while self._open:
            update = await self._updates.get()
            if isinstance(update, RequestFault):
                raise update
            index, piece, when = update
            if isinstance(piece, Broken):
                self._open.clear()
                raise engine_failed(piece.reason)
            delta = self._delta(index, piece, when)
            if delta.says_something:
                yield delta

    async def choices(self) -> list[Choice]:
        """All sequences, once they are finished.

        Raises:
            RequestFault: as `deltas`.
        """
        found = [delta.choice async for delta in self.deltas() if delta.choice is not None]
        return sorted(found, key=lambda choice: choice.index)

    def _delta(self, index: int, piece: Piece, when: float) -> Delta:
        metrics = self._service.metrics
        if piece.token_ids:
            self._time(index, when)
        metrics.generated_tokens.inc(len(piece.token_ids))
        self._written += len(piece.token_ids)
        delta = self._told[index].delta(piece)
        if piece.result is None:
            return delta
        del self._open[index]
        reason = _REASONS.get(piece.result.finish_reason)
        metrics.sequences.labels(reason or piece.result.finish_reason).inc()
        if reason is None:
            raise RequestFault("the request was cancelled", status=500, code="cancelled")
        told = self._told[index].choice(piece.result, reason, self._prompt_tokens[index])
        return replace(delta, choice=told)

    def _time(self, index: int, when: float) -> None:
        """A token of a sequence has come."""
        metrics = self._service.metrics
        started = self._started.pop(index, None)
        if started is not None:
            metrics.first_token_seconds.observe(when - started)
        else:
            metrics.inter_token_seconds.observe(when - self._newest[index])
        self._newest[index] = when


class Service:
    """One model behind the server: names, limits, the engine's worker, and all open answers."""

    def __init__(
        self,
        name: str,
        worker: EngineWorker,
        tokenizer: Any,
        defaults: SamplingDefaults | None = None,
        api_key: str | None = None,
    ) -> None:
        """Serve one model.

        Args:
            name: what clients call it.
            worker: not yet started.
            tokenizer: of the model.
            defaults: how tokens are chosen where a request does not say; by default the API's.
            api_key: what requests must show; None: nothing.
        """
        self.name = name
        self.api_key = api_key
        self.defaults = defaults or SamplingDefaults()
        self.created = int(time.time())
        self.worker = worker
        self.metrics = Metrics()
        self.draining = False
        self._encoder = PromptEncoder(tokenizer, worker.engine.max_length)
        self.token_texts = TokenTexts(tokenizer)
        self._answers: set[Answer] = set()

    def start(self) -> None:
        """Start the engine's thread; to be called on the event loop."""
        self.worker.start()

    def stop(self, seconds: float = 10.0) -> bool:
        """End the threads; whether the engine's ended in time."""
        self._encoder.close()
        return self.worker.stop(seconds)

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    def abort_all(self) -> None:
        """End every open answer with an error."""
        for answer in list(self._answers):
            answer.abort(shutting_down())

    @property
    def num_open(self) -> int:
        """Answers that are not finished."""
        return len(self._answers)

    def forget(self, answer: Answer) -> None:
        """An answer was closed."""
        self._answers.discard(answer)

    async def begin(self, request: CompletionRequest | ChatRequest) -> Answer:
        """Check a request against the model, and queue it.

        Raises:
            RequestFault: it asks for another model, is too long, or cannot be taken now.
        """
        self._check(request)
        self.worker.require_room(1)
        if isinstance(request, ChatRequest):
            prompts = [await self._encoder.chat(request.messages, request.template_arguments)]
        else:
            prompts = [await self._encoder.text(prompt) for prompt in request.prompts]
        all_options = [self._options(request, len(token_ids)) for token_ids in prompts]
        # Encoding took time, in which the server may have been told to stop.
        if self.draining:
            raise shutting_down()
        self.worker.require_room(len(prompts) * request.n)
        answer = Answer(self)
        self._answers.add(answer)
        try:
            for place, (token_ids, options) in enumerate(zip(prompts, all_options, strict=True)):
                echo = self._echo(request, place, token_ids)
                for number in range(request.n):
                    own = replace(options, seed=_seed(request.seed, number))
                    answer.add(token_ids, own, is_another=number > 0, echo=echo)
        except SecateurError as error:
            answer.close()
            raise error if isinstance(error, RequestFault) else RequestFault(str(error)) from None
        return answer

    def _check(self, request: GenerationRequest) -> None:
        if self.draining:
            raise shutting_down()
        if request.model != self.name:
            raise RequestFault(
                f"there is no model {shown(request.model)} here, but {self.name}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _echo(
        self, request: CompletionRequest | ChatRequest, place: int, token_ids: Sequence[int]
    ) -> str | None:
        """The text of a prompt, if it is to be told."""
        if not isinstance(request, CompletionRequest) or not request.echo:
            return None
        prompt = request.prompts[place]
        return prompt if isinstance(prompt, str) else self.token_texts.text(token_ids)

    def _options(self, request: GenerationRequest, length: int) -> GenerationOptions:
        limit = self.worker.engine.max_length
        wanted = request.max_tokens
        if wanted is None:
            wanted = max(1, min(limit - length, request.usual_tokens or limit))
        if length + wanted > limit:
            raise too_long(
                limit,
                f"the prompt has {length} and {wanted} are to follow",
                "max_tokens" if length < limit else "prompt",
            )
        return GenerationOptions(
            max_new_tokens=wanted,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            stop=request.stop,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            prompt_logprobs=request.logprobs and request.echo,
        )


def _seed(wanted: int | None, number: int) -> int:
    """Of one of several answers to a prompt: as the client wants it, else drawn anew each time."""
    return secrets.randbits(_SEED_BITS) if wanted is None else (wanted + number) % 2**_SEED_BITS
