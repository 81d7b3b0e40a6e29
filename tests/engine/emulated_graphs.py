"""CUDA graphs on a CPU: what was launched while one was captured is launched again, as it was.

As on a GPU a graph holds what it computed itself, and knows of all else only where it lay: memory
that was given back since is found out. So is an operation whose result the host reads, or whose
shape depends on values, which no capture allows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
_ASK_THE_DEVICE = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2)


class OutsideMemory:
    """A tensor that was there before the capture: its place, and nothing that keeps it there."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.place = (tensor.storage_offset(), tensor.shape, tensor.stride())
        self.dtype = tensor.dtype

    def tensor(self) -> Tensor:
        assert not self.storage.expired(), "a graph reads memory that was given back"
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.place)


@dataclass
class EmulatedGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    launches: list[Callable[[], None]] = field(default_factory=list)
    owned: dict[int, Any] = field(default_factory=dict)
    """Storages that the graph holds, by their identity."""

    def replay(self) -> None:
        for launch in self.launches:
            launch()

    def note(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Keep one operation that has just run."""
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if is_view:
            return
        known = {t.untyped_storage()._cdata for t in tensors_in((args, kwargs))}
        held = tree_map(self._held, (args, kwargs))
        results = [t for t in tensors_in(output) if t.untyped_storage()._cdata not in known]
        self.owned |= {t.untyped_storage()._cdata: t.untyped_storage() for t in results}

        def launch() -> None:
            again_args, again_kwargs = tree_map(found, held)
            again = func(*again_args, **again_kwargs)
            if results:
                for result, new in zip(results, tensors_in(again), strict=True):
                    result.copy_(new)

        self.launches.append(launch)

    def _held(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.untyped_storage()._cdata in self.owned:
            return value
        return OutsideMemory(value)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def found(value: Any) -> Any:
    return value.tensor() if isinstance(value, OutsideMemory) else value


class _Recording(TorchDispatchMode):
    def __init__(self, graph: EmulatedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _ASK_THE_DEVICE:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        output = func(*args, **(kwargs or {}))
        self.graph.note(func, args, kwargs or {}, output)
        return output


class _Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: "_Stream") -> None:
        """Everything has run already."""


@contextmanager
def _capturing(graph: EmulatedGraph, **_: Any) -> Iterator[None]:
    with _Recording(graph):
        yield


def emulate_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of the test, graphs are captured and replayed on the CPU."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", _capturing)
