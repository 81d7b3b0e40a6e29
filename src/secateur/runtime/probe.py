"""Which layers of a model are called with the same input: found by running it once."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError

_TOKENS = 8
# Two rounded results of one product may differ by this many units of their dtype, as norms.
_ROUNDINGS = 4


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer."""

    name: str
    x: Tensor
    """Kept, so that no other tensor has its identity meanwhile."""


def probe_ids(model: nn.Module) -> Tensor:
    """Eight token ids [1, 8] that any model of this vocabulary knows, on its device.

    Raises:
        SecateurError: the model has no input embeddings.
    """
    find: Callable[[], Any] | None = getattr(model, "get_input_embeddings", None)
    embeddings = None if find is None else find()
    if not isinstance(embeddings, nn.Embedding):
        raise SecateurError(
            f"expected a model with input embeddings to look for layers of one input, got "
            f"{type(model).__name__}; fuse=False leaves them alone"
        )
    ids = torch.arange(_TOKENS, device=embeddings.weight.device) % embeddings.num_embeddings
    return ids.view(1, -1)


def run_probe(model: nn.Module, hint: str = "fuse=False accelerates it without") -> None:
    """Run a model on a few tokens.

    Args:
        hint: what to say beside the reason where that fails.

    Raises:
        SecateurError: the model cannot be run on token ids alone.
    """
    ids = probe_ids(model)
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SecateurError(
            f"could not run {type(model).__name__} on a few tokens ({error}); {hint}"
        ) from error


def record_calls(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[Call]:
    """Calls of layers with one tensor during a forward pass of a few tokens, in order.

    Raises:
        SecateurError: as `run_probe`.
    """
    calls: list[Call] = []
    with _noting(layers, calls):
        run_probe(model)
    return calls


@contextmanager
def _noting(layers: Mapping[str, nn.Module], calls: list[Call]) -> Iterator[None]:
    def noter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                calls.append(Call(name, args[0]))

        return hook

    hooks = [module.register_forward_pre_hook(noter(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def groups_of(calls: Sequence[Call]) -> list[tuple[str, ...]]:
    """Children of one parent that were called once each, with the very same tensor.

    Returns:
        groups of at least two names, each in the order of its calls.
    """
    times = Counter(call.name for call in calls)
    groups: dict[tuple[str, int], list[str]] = {}
    for call in calls:
        if times[call.name] == 1:
            parent = call.name.rpartition(".")[0]
            groups.setdefault((parent, id(call.x)), []).append(call.name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def nearly_equal(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of the same sums, taken in another order, are the same but for rounding.

    Args:
        found: any shape.
        expected: the same shape and dtype.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    distance = torch.linalg.vector_norm(found.double() - expected.double())
    allowed = max(_ROUNDINGS * torch.finfo(expected.dtype).eps, 1e-5)
    return bool(distance <= allowed * torch.linalg.vector_norm(expected.double()))
