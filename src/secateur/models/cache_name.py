"""What a model calls its key-value cache."""

import inspect

from torch import nn


def cache_name(model: nn.Module) -> str:
    """The name of the cache, both as an argument of `forward` and in what it returns.

    `cache` from transformers 5.24 on, which warns of the older name; `past_key_values` before, and
    in models that take neither.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
