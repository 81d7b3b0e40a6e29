"""What `torch.autocast` does to a linear op: what it does to `nn.Linear`."""

from collections.abc import Collection
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.dependent_launch import dependent_launch
from secateur_kernels.namespace import LIBRARY

# What kernels read only once the one in front has ended.
_READ_LATE = ("x", "bias", "residual")
_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def register_autocast(name: str) -> None:
    """Have an op whose first argument is x cast its floating arguments under autocast.

    The result has autocast's dtype. A packed weight is multiplied in its own dtype whatever
    autocast asks for, as its bytes cannot be cast, and the result is cast. Calls with x in fp64
    are left alone, as autocast does.

    Args:
        name: of the op, defined before.
    """
    op = getattr(torch.ops.secateur, name).default
    names = [argument.name for argument in op._schema.arguments]
    late = [names.index(name) for name in _READ_LATE]
    for device, key in _KEYS.items():
        LIBRARY.impl(name, partial(_cast_and_call, op, device, late), key)


def _cast_and_call(op: Any, device: str, late: Collection[int], *arguments: Any) -> Any:
    asked = torch.get_autocast_dtype(device)
    # The one dtype among an op's arguments is that of its packed weight.
    inner = next((value for value in arguments if isinstance(value, torch.dtype)), asked)
    with torch.autocast(device, enabled=False):
        if arguments[0].dtype == torch.float64:
            return op(*arguments)
        cast = [_cast(value, inner) for value in arguments]
        # Weights that are cast are the work of a kernel in front: none to overlap with.
        pairs = enumerate(zip(cast, arguments, strict=True))
        made = any(new is not old for place, (new, old) in pairs if place not in late)
        with dependent_launch(False) if made else nullcontext():
            return op(*cast).to(asked)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
