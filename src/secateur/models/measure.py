"""Sizes of a model, and whether its weights and outputs are numbers."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules.weight24 import Weight24Module
from secateur_kernels.precision import dtype_name

_ELEMENTS_AT_ONCE = 1 << 22


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a state dict holds of a module itself, without its children, by name in the module.

    A packed 2:4 weight is unpacked for it: module by module, copies of the whole model never lie
    in memory together, as they do in the state dict of a model.
    """
    tensors: dict[str, Any] = {}
    module._save_to_state_dict(tensors, "", keep_vars=True)
    return tensors


def saved_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a checkpoint holds, one after another; tied ones once."""
    seen: dict[int, weakref.ref[Tensor]] = {}
    for module in model.modules():
        for tensor in own_tensors(module).values():
            # The id of a copy that is gone may be given out again.
            if (before := seen.get(id(tensor))) is None or before() is not tensor:
                seen[id(tensor)] = weakref.ref(tensor)
                yield tensor


def num_bytes(model: nn.Module) -> int:
    """Bytes of parameters and saved buffers; tied weights count once."""
    return sum(tensor.nbytes for tensor in saved_tensors(model))


def require_finite_weights(model: nn.Module, prefix: str = "") -> None:
    """Raise SecateurError, with its name, if a parameter is not there, too narrow or not finite.

    `prefix`: the name of `model` within its own.
    """
    for name, parameter in model.named_parameters(prefix):
        if parameter.is_meta:
            raise SecateurError(f"{name} is on the meta device: it has no values to compress")
        require_finite(name, parameter)


def is_finite(tensor: Tensor) -> bool:
    """Whether all of its numbers are: the extremes tell, a sixtieth of the work of looking at each.

    NaN anywhere makes both of them NaN.
    """
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def require_finite(name: str, parameter: Tensor) -> None:
    """Raise SecateurError, with the tensor's name, if it is not finite, or of 8 bits or less."""
    if parameter.is_floating_point() and parameter.itemsize < 2:
        name_of_dtype = dtype_name(parameter.dtype)
        raise SecateurError(
            f"expected weights of at least 16 bits, but {name} is {name_of_dtype}: load the model "
            "in another dtype, such as bfloat16"
        )
    if is_finite(parameter.detach()):
        return
    # In parts: what is computed on the way takes several times their memory.
    parts = parameter.detach().reshape(-1).split(_ELEMENTS_AT_ONCE)
    num_bad = sum(part.numel() - int(part.isfinite().sum()) for part in parts)
    raise SecateurError(
        f"expected finite weights, but {name} holds NaN or Inf in {num_bad} of "
        f"{parameter.numel()} places"
    )


def num_zeros(parameters: Iterable[Tensor]) -> int:
    """Weights that are zero; a comparison and its sum would take nine bytes for each of them."""
    return sum(item.numel() - int(torch.count_nonzero(item)) for item in parameters)


def num_logical_parameters(model: nn.Module) -> int:
    """Parameters of a model or a part of it, a 2:4 weight as all of its [N, K], whatever its form.

    Tied weights count once. Shapes are enough: tensors may be on the meta device.
    """
    plain, sparse = _plain_and_sparse(model)
    return sum(p.numel() for p in plain) + sum(m.out_features * m.in_features for m in sparse)


def num_logical_zeros(model: nn.Module) -> int:
    """How many of `num_logical_parameters` are zero; what 2:4 removed is."""
    plain, sparse = _plain_and_sparse(model)
    logical = sum(module.out_features * module.in_features for module in sparse)
    kept = sum(int(module.canonical_values().count_nonzero()) for module in sparse)
    return num_zeros(plain) + logical - kept


def _plain_and_sparse(model: nn.Module) -> tuple[list[nn.Parameter], list[Weight24Module]]:
    """Parameters but for 2:4 weights, and the modules that hold these."""
    sparse = [module for module in model.modules() if isinstance(module, Weight24Module)]
    held = {id(module.weight) for module in sparse}
    return [p for p in model.parameters() if id(p) not in held], sparse


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
