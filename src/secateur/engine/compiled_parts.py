"""A model in parts, each compiled by itself: parts that are alike share one program.

One program for a whole model takes the longer to compile the deeper the model is. Its blocks are
mostly the same code over other weights, and to a program weights are inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from secateur.engine.fused_residuals import compiled_with_residuals
from secateur.engine.slot_cache import WindowCache
from secateur.models.blocks import INDEX_NAMES, find_blocks
from secateur.modules.low_rank_linear import LowRankLinear
from secateur.modules.sparse_low_rank_linear import SparseLowRankLinear

# Every program is compiled once for all; torch gives up after 8 of one function, of all engines.
_MANY_PROGRAMS = 256

Forward = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class _Part:
    module: nn.Module
    forward: Forward
    layer: int | None
    """The entry of the cache that it uses; None if that is not exactly one."""


class CompiledParts:
    """The blocks of a model, and the modules beside them, as programs."""

    def __init__(self, model: nn.Module) -> None:
        """Compiles nothing yet: a part is compiled when it first runs.

        Args:
            model: keeps its blocks; layers in them may be replaced.

        Raises:
            SecateurError: the model's blocks are not found.
        """
        self._parts = [
            _Part(module, module.forward, _layer_of(module)) for module in _find_parts(model)
        ]
        self._ranks_are_inputs = _mark_ranks(model)
        self._program = torch.compile(
            _call, backend=compiled_with_residuals, fullgraph=True, dynamic=False
        )

    @contextmanager
    def running(self, window: WindowCache, *, any_batch: bool) -> Iterator[None]:
        """While this is open, a forward pass of the model over this window runs the programs.

        Args:
            window: the cache of the pass.
            any_batch: one program serves all batches of several rows, else each has its own.
        """
        own = [part.module.__dict__.get("forward") for part in self._parts]
        for part in self._parts:
            part.module.__dict__["forward"] = self._compiled(part, window, any_batch)
        try:
            with (
                torch._dynamo.config.patch(
                    recompile_limit=_MANY_PROGRAMS,
                    accumulated_recompile_limit=4 * _MANY_PROGRAMS,
                    force_parameter_static_shapes=not self._ranks_are_inputs,
                ),
                # Sizes that are equal by chance in one block are not in the next.
                torch.fx.experimental._config.patch(  # type: ignore[attr-defined]
                    use_duck_shape=not self._ranks_are_inputs
                ),
            ):
                yield
        finally:
            for part, before in zip(self._parts, own, strict=True):
                if before is None:
                    del part.module.__dict__["forward"]
                else:
                    part.module.__dict__["forward"] = before

    def _compiled(self, part: _Part, window: WindowCache, any_batch: bool) -> Forward:
        batch = len(window.positions)
        cache = window if part.layer is None else window.of_layer(part.layer)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = [cache if value is window else value for value in args]
            named = {name: cache if value is window else value for name, value in kwargs.items()}
            if any_batch:
                _mark_lengths((*given, *named.values()), window.length)
            if any_batch and batch > 1:
                _mark_rows((*given, *named.values()), batch)
            return self._program(part.forward, given, named)

        return forward


def _call(forward: Forward, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return forward(*args, **kwargs)


def _mark_ranks(model: nn.Module) -> bool:
    """Have one program serve blocks whose factors differ in rank; False if all have one rank."""
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear | SparseLowRankLinear)]
    if len({layer.up.shape[1] for layer in layers}) < 2:
        return False
    for layer in layers:
        down = layer.held_down() if isinstance(layer, LowRankLinear) else layer.down
        torch._dynamo.maybe_mark_dynamic(layer.up, 1)
        torch._dynamo.maybe_mark_dynamic(down, 0)
    return True


def _mark_rows(values: tuple[Any, ...], batch: int) -> None:
    for value in values:
        if isinstance(value, Mapping):
            _mark_rows(tuple(value.values()), batch)
        elif isinstance(value, tuple):
            _mark_rows(value, batch)
        elif isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch:
            torch._dynamo.maybe_mark_dynamic(value, 0)


def _mark_lengths(values: tuple[Any, ...], length: int) -> None:
    """Of keys and values [B, heads, length, head_dim] that blocks are given of earlier ones."""
    for value in values:
        for tensor in _tensors_of(value) if isinstance(value, Mapping) else ():
            if tensor.ndim == 4 and tensor.shape[2] == length:
                torch._dynamo.maybe_mark_dynamic(tensor, 2)


def _tensors_of(shared: Mapping[Any, Any]) -> Iterator[Tensor]:
    for value in shared.values():
        states = value if isinstance(value, tuple) else (value,)
        yield from (tensor for tensor in states if isinstance(tensor, Tensor))


def _find_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Blocks, and what stands beside them or their containers and is no layer of torch's own."""
    blocks = find_blocks(model)
    yield from blocks.modules
    path = blocks.name.split(".")
    for depth, leads_to_blocks in enumerate(path):
        for name, child in model.get_submodule(".".join(path[:depth])).named_children():
            if name != leads_to_blocks and not type(child).__module__.startswith("torch.nn."):
                yield child


def _layer_of(module: nn.Module) -> int | None:
    found = {
        value
        for inner in module.modules()
        for name in INDEX_NAMES
        if isinstance(value := getattr(inner, name, None), int)
    }
    return found.pop() if len(found) == 1 else None
