"""Ways to run a batch through a model, each saying when every token came."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.engine import Engine, GenerationOptions
from secateur.errors import SecateurError
from secateur.models.measure import num_bytes
from secateur.report.throughput_record import RunnerName
from secateur.throughput.memory import PeakMemory
from secateur.throughput.turn import Turn

Prompts = Sequence[Sequence[int]]


class Runner(Protocol):
    """Runs one model."""

    name: RunnerName

    def run(self, prompts: Prompts, new_tokens: int) -> Turn:
        """Continue prompts of equal length greedily, each by exactly `new_tokens`."""


class EngineRunner:
    """`secateur.Engine`, all prompts submitted at once."""

    name: RunnerName = "engine"

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        self._engine = engine
        device = next(model.parameters()).device
        self._memory = PeakMemory(device, num_bytes(model) + engine.cache_bytes)

    def run(self, prompts: Prompts, new_tokens: int) -> Turn:
        """As `Runner.run`; a token counts when the host has it."""
        engine = self._engine
        options = GenerationOptions(max_new_tokens=new_tokens, ignore_eos=True)
        self._memory.begin()
        started = perf_counter()
        ids = [engine.submit(prompt, options) for prompt in prompts]
        arrivals: dict[int, list[float]] = {request_id: [] for request_id in ids}
        while engine.has_work:
            pieces = engine.step()
            now = perf_counter() - started
            for piece in pieces:
                arrivals[piece.request_id] += [now] * len(piece.token_ids)
        return Turn(tuple(map(tuple, arrivals.values())), self._memory.end())


class TransformersRunner:
    """The model's own `generate`, with its dynamic cache or the static one."""

    def __init__(self, model: nn.Module, static: bool) -> None:
        if not callable(getattr(model, "generate", None)):
            raise SecateurError(f"{type(model).__name__} has no generate method to compare with")
        self.name: RunnerName = "transformers static" if static else "transformers eager"
        self._model: Any = model
        self._cache = {"cache_implementation": "static"} if static else {}
        self._device = next(model.parameters()).device
        self._memory = PeakMemory(self._device, num_bytes(model))

    def run(self, prompts: Prompts, new_tokens: int) -> Turn:
        """As `Runner.run`; the device is waited for after every token."""
        input_ids = torch.tensor([list(prompt) for prompt in prompts], device=self._device)
        moments: list[float] = []
        self._memory.begin()
        started = perf_counter()

        def clock(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            moments.append(perf_counter() - started)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        with torch.no_grad(), _endless(self._model):
            self._model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                stopping_criteria=[clock],
                **self._cache,
            )
        return Turn((tuple(moments),) * len(prompts), self._memory.end())


@contextmanager
def _endless(model: Any) -> Iterator[None]:
    """While this is open no token ends a text."""
    before = model.generation_config
    config = copy.deepcopy(before)
    config.eos_token_id = None
    config.pad_token_id = 0
    model.generation_config = config
    ended_by = model.config.eos_token_id
    model.config.eos_token_id = None
    try:
        yield
    finally:
        model.generation_config = before
        model.config.eos_token_id = ended_by
