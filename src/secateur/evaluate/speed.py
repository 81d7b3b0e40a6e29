"""Prefill speed of several models side by side, so that a drifting machine is fair to all."""

from collections.abc import Mapping
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn


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
