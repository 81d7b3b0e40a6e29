"""Watch the inputs of weight sites while a block runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import SymInt, Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.models.sites import WeightSite

Sink = Callable[[Tensor], None]


@contextmanager
def observed(sites: Sequence[WeightSite], sinks: Mapping[str, Sink]) -> Iterator[None]:
    """While this is open, every input [..., K] of a site goes to its sink.

    Args:
        sites: those of one block.
        sinks: by site name; sites without a sink are not watched.
    """
    with ExitStack() as stack:
        for site in sites:
            if site.expert is None and site.name in sinks:
                hook = site.module.register_forward_pre_hook(
                    _hook(sinks[site.name]), with_kwargs=True
                )
                stack.callback(hook.remove)
        experts = [site for site in sites if site.expert is not None and site.name in sinks]
        if experts:
            stack.enter_context(_experts_one_by_one({id(s.module): s.module for s in experts}))
            stack.enter_context(_SliceWatch(experts, sinks))
        yield


def _hook(sink: Sink) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sink(args[0] if args else next(iter(kwargs.values())))

    return hook


class _SliceWatch(TorchFunctionMode):
    """Sees products with a slice of a fused expert parameter, whatever code multiplies.

    Fused experts are no modules, so no hook can see what reaches one of them. The slice shares
    the parameter's storage, and its offset there tells which expert it is. A product with the
    whole parameter is one of inputs [num_experts, tokens, K], or of [tokens, K] for all experts.
    """

    def __init__(self, sites: Sequence[WeightSite], sinks: Mapping[str, Sink]) -> None:
        super().__init__()
        self._sinks: dict[tuple[int, int | SymInt], Sink] = {}
        self._stacks: dict[int, dict[int, Sink]] = {}
        """By expert, where all of them are multiplied at once."""
        for site in sites:
            place = site.parameter.untyped_storage().data_ptr()
            self._sinks[place, site.weight.storage_offset()] = sinks[site.name]
            assert site.expert is not None
            self._stacks.setdefault(place, {})[site.expert] = sinks[site.name]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        weight = args[1] if len(args) >= 2 else (kwargs or {}).get("weight")
        if func in _PRODUCTS and isinstance(weight, Tensor):
            self._note(args[0] if args else (kwargs or {})["input"], weight)
        return func(*args, **(kwargs or {}))

    def _note(self, inputs: Tensor, weight: Tensor) -> None:
        place = weight.untyped_storage().data_ptr()
        if weight.ndim < 3:
            sink = self._sinks.get((place, weight.storage_offset()))
            if sink is not None:
                sink(inputs)
            return
        for expert, sink in self._stacks.get(place, {}).items():
            rows = inputs.expand(len(weight), -1, -1)[expert]
            # Every expert is given every token, those of others as zeros.
            routed = rows[rows.any(dim=-1)]
            if len(routed):
                sink(routed)


_PRODUCTS = {
    nn.functional.linear,
    torch.bmm,
    torch.matmul,
    torch.mm,
    Tensor.bmm,
    Tensor.matmul,
    Tensor.mm,
    Tensor.__matmul__,
}


@contextmanager
def _experts_one_by_one(modules: Mapping[int, nn.Module]) -> Iterator[None]:
    """Have transformers multiply expert by expert instead of all in one grouped product."""
    configs = {
        id(config): config
        for module in modules.values()
        if (config := getattr(module, "config", None)) is not None
        and hasattr(config, "_experts_implementation")
    }
    saved = [(config, config._experts_implementation) for config in configs.values()]
    for config, _ in saved:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in saved:
            config._experts_implementation = implementation
