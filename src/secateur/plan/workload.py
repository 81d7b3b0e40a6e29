"""What a model is timed at: one step of decoding, or a prefill."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.models.blocks import context_length
from secateur.models.cache_name import cache_name
from secateur.models.device import input_embedding

DEFAULT_CONTEXT = 128


@dataclass(frozen=True)
class Workload:
    """The call whose time counts."""

    batch: int = 1
    """Sequences at once."""
    prefill_length: int | None = None
    """Tokens in each; None: one step of decoding."""
    context: int = DEFAULT_CONTEXT
    """Decoding: tokens that are in the key-value cache."""
    threads: int | None = None
    """Of torch on the CPU, while times are measured; None: those that it has at the time."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise SecateurError(f"expected at least 1 thread, got {self.threads}")
        wrong = self.batch < 1 or self.context < 1
        if wrong or (self.prefill_length is not None and self.prefill_length < 1):
            raise SecateurError(
                "expected a batch, a prefill length and a context of at least 1, got "
                f"{self.batch}, {self.prefill_length} and {self.context}"
            )

    @property
    def tokens(self) -> int:
        """M, rows of every matrix product."""
        return self.batch * (self.prefill_length or 1)

    @property
    def name(self) -> str:
        """Such as `decode, batch 1, context 128`."""
        if self.prefill_length is None:
            return f"decode, batch {self.batch}, context {self.context}"
        return f"prefill, batch {self.batch}, length {self.prefill_length}"

    @contextmanager
    def its_threads(self) -> Iterator[None]:
        """While this is open, torch has the threads that are to be timed with."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def check(self, model: nn.Module) -> None:
        """Raise SecateurError if the model has too few positions for it."""
        limit = context_length(model)
        needed = self.prefill_length or self.context + 1
        if limit is not None and needed > limit:
            raise SecateurError(
                f"expected a workload of at most {limit} tokens a sequence, the model's context, "
                f"got {needed}"
            )


def workload_call(model: nn.Module, workload: Workload, seed: int = 0) -> Callable[[], object]:
    """A call that does the same work however often it is made.

    Args:
        model: in evaluation mode, where it is to be timed.
        workload: what is done; the tokens are random.
        seed: of the tokens.

    Raises:
        SecateurError: decoding, and the model's key-value cache cannot be brought back.
    """
    embedding = input_embedding(model)
    generator = torch.Generator().manual_seed(seed)
    length = workload.prefill_length or workload.context
    input_ids = torch.randint(len(embedding), (workload.batch, length), generator=generator).to(
        embedding.device
    )
    if workload.prefill_length is not None:
        return lambda: model(input_ids=input_ids, use_cache=False)
    return _decode_step(model, input_ids)


def _decode_step(model: nn.Module, input_ids: torch.Tensor) -> Callable[[], object]:
    name = cache_name(model)
    with torch.no_grad():
        cache: Any = getattr(model(input_ids=input_ids, use_cache=True), name)
    if not hasattr(cache, "layers"):
        raise SecateurError(
            f"expected a key-value cache that is kept by layers, got {type(cache).__name__}: give "
            "a prefill length instead"
        )
    token = input_ids[:, -1:].contiguous()
    # A step makes new tensors, so that the old ones bring back the cache as it was: in every layer,
    # whether a token was added there or its block was left out.
    begun = [dict(vars(layer)) for layer in cache.layers]

    def step() -> object:
        logits = model(input_ids=token, use_cache=True, **{name: cache}).logits
        for layer, saved in zip(cache.layers, begun, strict=True):
            vars(layer).update(saved)
        return logits

    return step
