"""Experts: how many tokens the router sends to each, and statistics as if it sent all to all."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.observe import Sink, observed
from secateur.errors import SecateurError
from secateur.models.sites import WeightSite

_Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class ExpertTokens:
    """Counts the tokens that the router sends to each expert of a block."""

    def __init__(self, sites: Sequence[WeightSite]) -> None:
        """Start at zero for every expert that one of these sites is a part of."""
        names = dict.fromkeys(site.expert_name for site in sites)
        self._counts = Counter({name: 0 for name in names if name is not None})

    def add(self, expert: str, inputs: Tensor) -> None:
        """So many rows [..., K] more reached an expert."""
        self._counts[expert] += inputs.numel() // max(1, inputs.shape[-1])

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens by expert, in the order of the sites; empty without experts."""
        return tuple(self._counts.values())


@contextmanager
def observed_experts(
    block: nn.Module,
    sites: Sequence[WeightSite],
    sinks: Mapping[str, Sink],
    routed: ExpertTokens,
    *,
    all_experts: bool = False,
) -> Iterator[None]:
    """As `observed`, with routing counted.

    Args:
        block: that is run while this is open.
        sites: those of the block.
        sinks: by site name.
        routed: told what the router does.
        all_experts: sinks of experts are given every token that reaches their layer, instead of
            those that are routed to them. What the block gives is the router's choice either way.

    Raises:
        SecateurError: while the block runs, if experts cannot be called with all tokens.
    """
    everything = _Everything()
    first = dict[str, str]()
    for site in sites:
        if site.expert_name is not None:
            first.setdefault(site.expert_name, site.name)
    counting = set(first.values())
    watched = dict(sinks)
    for site in sites:
        name, sink = site.expert_name, sinks.get(site.name)
        if name is None or (sink is None and site.name not in counting):
            continue
        count = _counter(routed, name) if site.name in counting else None
        watched[site.name] = _divided(everything, count, sink, all_experts)
    with ExitStack() as stack:
        stack.enter_context(observed(sites, watched))
        if all_experts:
            stack.enter_context(_all_tokens_to_all(block, sites, everything))
        yield


def _counter(routed: ExpertTokens, expert: str) -> Sink:
    return lambda inputs: routed.add(expert, inputs)


class _Everything:
    """Whether all tokens are on their way to all experts, rather than the routed ones."""

    is_running = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False


def _divided(
    everything: _Everything, count: Sink | None, sink: Sink | None, all_experts: bool
) -> Sink:
    """Routed tokens are counted; the sink is given these, or all of them."""

    def divided(inputs: Tensor) -> None:
        if count is not None and not everything.is_running:
            count(inputs)
        if sink is not None and everything.is_running == all_experts:
            sink(inputs)

    return divided


@contextmanager
def _all_tokens_to_all(
    block: nn.Module, sites: Sequence[WeightSite], everything: _Everything
) -> Iterator[None]:
    """Before a layer of experts is run, each of them is run on all of its tokens."""
    fused = {id(site.module): site.module for site in sites if site.expert is not None}
    wanted = {id(site.module) for site in sites if site.is_expert}
    layers = [
        module
        for module in block.modules()
        if (experts := getattr(module, "experts", None)) is not None
        and any(id(part) in wanted for part in experts.modules())
        and (isinstance(experts, nn.ModuleList) or _takes_rows_alone(experts))
    ]
    for layer in layers:
        fused.pop(id(layer.experts), None)
    hooks = [(module, _run_fused(everything)) for module in fused.values()]
    hooks += [(layer, _run_on_rows(everything)) for layer in layers]
    with ExitStack() as stack:
        for module, hook in hooks:
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _run_fused(everything: _Everything) -> _Hook:
    """transformers' fused experts: hidden states, numbers of chosen experts, their weights."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        if len(values) != 3 or not all(isinstance(value, Tensor) for value in values):
            raise SecateurError(
                f"calibrate_all_experts: expected {type(module).__name__} to be called with "
                "hidden states, chosen experts and their weights, got "
                f"{[type(value).__name__ for value in values]}; calibrate without it"
            )
        hidden, chosen, weights = values
        one = weights.new_ones(len(chosen), 1)
        with everything.running(), torch.no_grad():
            for expert in range(_num_fused(module)):
                routing = (hidden, chosen.new_full((len(chosen), 1), expert), one)
                named = dict(zip(kwargs, routing[len(args) :], strict=True))
                module.forward(*routing[: len(args)], **named)

    return hook


def _takes_rows_alone(experts: nn.Module) -> bool:
    """Whether fused experts are called with rows [num_experts * tokens, width] and no more."""
    return len(signature(experts.forward).parameters) == 1


def _run_on_rows(everything: _Everything) -> _Hook:
    """A layer whose experts take rows [tokens, width]: modules, or one that holds them fused."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else next(iter(kwargs.values()))
        rows = hidden.reshape(-1, hidden.shape[-1])
        experts: Any = module.experts
        with everything.running(), torch.no_grad():
            if not isinstance(experts, nn.ModuleList):
                experts(rows.repeat(_num_fused(experts), 1))
                return
            for expert in experts:
                try:
                    expert(rows)
                except TypeError as error:
                    raise SecateurError(
                        f"calibrate_all_experts: expected {type(expert).__name__} to be called "
                        f"with hidden states alone: {error}; calibrate without it"
                    ) from None

    return hook


def _num_fused(experts: nn.Module) -> int:
    return next(len(p) for p in experts.parameters(recurse=False) if p.ndim == 3)
