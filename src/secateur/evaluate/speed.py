"""Speed of several models side by side, so that a drifting machine is fair to all of them."""

from collections.abc import Mapping
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.cache_name import cache_name


def prefill_tokens_per_second(
    models: Mapping[str, nn.Module], input_ids: Tensor, rounds: int = 5
) -> dict[str, float]:
    """Median speed of a forward pass over the same tokens, the models taking turns.

    Args:
        models: by name, on the CPU.
        input_ids: int64 [batch, length].
        rounds: timed turns after one that is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            started = perf_counter()
            with torch.no_grad():
                model(input_ids=input_ids, use_cache=False)
            if turn:
                seconds[name].append(perf_counter() - started)
    return {name: input_ids.numel() / median(times) for name, times in seconds.items()}


def decode_tokens_per_second(
    models: Mapping[str, nn.Module], input_ids: Tensor, num_tokens: int = 32, rounds: int = 3
) -> dict[str, float]:
    """Median speed of greedy steps with the key-value cache, the models taking turns.

    The prompt is computed anew in every turn and is not timed.

    Args:
        models: by name, on the CPU.
        input_ids: int64 [1, length], the prompt.
        num_tokens: steps in a turn.
        rounds: timed turns after one that is not timed.

    Raises:
        SecateurError: the prompt is not one sequence, or there is no step.
    """
    if input_ids.ndim != 2 or len(input_ids) != 1 or num_tokens < 1:
        raise SecateurError(
            "expected a prompt [1, length] and at least one step, got "
            f"{list(input_ids.shape)} and {num_tokens}"
        )
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            times = _step_times(model, input_ids, num_tokens)
            if turn:
                seconds[name] += times
    return {name: 1.0 / median(times) for name, times in seconds.items()}


@torch.no_grad()
def _step_times(model: nn.Module, input_ids: Tensor, num_tokens: int) -> list[float]:
    output = model(input_ids=input_ids, use_cache=True)
    name = cache_name(model)
    times = []
    for _ in range(num_tokens):
        token = output.logits[:, -1:].argmax(-1)
        started = perf_counter()
        output = model(input_ids=token, use_cache=True, **{name: getattr(output, name)})
        times.append(perf_counter() - started)
    return times
