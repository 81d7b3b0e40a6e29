"""Sizes of a model, and whether its weights and outputs are numbers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError

_ELEMENTS_AT_ONCE = 1 << 22


def num_bytes(model: nn.Module) -> int:
    """Bytes of parameters and saved buffers; tied weights count once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def require_finite_weights(model: nn.Module) -> None:
    """Raise SecateurError, with the tensor's name, if a parameter is not there or not finite."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise SecateurError(f"{name} is on the meta device: it has no values to compress")
        require_finite(name, parameter)


def require_finite(name: str, parameter: Tensor) -> None:
    """Raise SecateurError, with the tensor's name, if it is not finite."""
    # In parts: what is computed on the way takes several times their memory.
    parts = parameter.detach().reshape(-1).split(_ELEMENTS_AT_ONCE)
    num_bad = sum(part.numel() - int(part.isfinite().sum()) for part in parts)
    if num_bad:
        raise SecateurError(
            f"expected finite weights, but {name} holds NaN or Inf in {num_bad} of "
            f"{parameter.numel()} places"
        )


def num_zeros(parameters: Iterable[Tensor]) -> int:
    """Weights that are zero; a comparison and its sum would take nine bytes for each of them."""
    return sum(item.numel() - int(torch.count_nonzero(item)) for item in parameters)


def require_finite_outputs(model: nn.Module, input_ids: Tensor) -> None:
    """Raise SecateurError, with the place, unless a short run gives finite logits.

    Args:
        model: a causal language model.
        input_ids: int64 [1, length].
    """
    with torch.no_grad():
        output = model(input_ids=input_ids, use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise SecateurError(
            f"expected a causal language model, but {type(model).__name__} gives no logits"
        )
    if not bool(logits.isfinite().all()):
        place = _first_overflow(model, input_ids)
        raise SecateurError(
            f"activations that enter {place} hold NaN or Inf; the model (or its dtype) overflows"
        )


def _first_overflow(model: nn.Module, input_ids: Tensor) -> str:
    """The first module that is given something that is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                found.append(name)

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the softmax (the logits)"
