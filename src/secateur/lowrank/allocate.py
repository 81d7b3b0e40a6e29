"""Ranks for all layers out of one budget of parameters, by what the loss gains from each.

Every layer is a curve of loss over parameters. Along ranks it is convex, because singular values
fall; its last point, the dense layer, may lie far below the line. On the lower convex hulls the
best choice for any budget that it can meet exactly is to take the steps of all layers in the order
of their gain a parameter (Lagrange); what is left of the budget at the first step that does not
fit is spent on the best smaller steps that do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from secateur.lowrank.spectrum import Options, Spectrum, gain, lower_hull, options_of
from secateur_kernels.errors import SecateurError


@dataclass(frozen=True)
class Allocation:
    """A rank for every layer."""

    ranks: Mapping[str, int | None]
    """By layer; None: it stays dense."""
    parameters: int
    """Stored by all layers together, at most the budget."""
    loss: float
    """Sum of the layers' losses (see `Spectrum.losses`)."""
    lower_bound: float
    """No choice within the budget has a smaller loss."""


def allocate_ranks(spectra: Sequence[Spectrum], budget: int, granularity: int = 16) -> Allocation:
    """Choose ranks; deterministic, equal gains go to the layer that was named first.

    A layer's factors stay below its break-even rank; a layer for which that is not enough stays
    dense at its dense cost. The loss is above the optimum by less than one step of one layer, and
    what is left of the budget is less than any step that would lower the loss.

    Args:
        spectra: with different names.
        budget: parameters that all these layers together may store.
        granularity: ranks are multiples of it; 16 is what kernels work in.

    Raises:
        SecateurError: names are not unique, the granularity is below 1, or the budget is too small
            for the lowest rank everywhere.
    """
    _check(spectra, granularity)
    options = [options_of(spectrum, granularity) for spectrum in spectra]
    least = sum(int(layer.costs[0]) for layer in options)
    if budget < least:
        raise SecateurError(
            f"expected a budget of at least {least:,} parameters (rank {granularity}, the lowest, "
            f"in all {len(spectra)} layers), got {budget:,}"
        )
    chosen, lower_bound = _take_hull_steps(options, budget)
    _spend_the_rest(options, chosen, budget - _cost(options, chosen))
    return Allocation(
        ranks={
            spectrum.name: layer.ranks[option]
            for spectrum, layer, option in zip(spectra, options, chosen, strict=True)
        },
        parameters=_cost(options, chosen),
        loss=_loss(options, chosen),
        lower_bound=lower_bound,
    )


def _check(spectra: Sequence[Spectrum], granularity: int) -> None:
    names = [spectrum.name for spectrum in spectra]
    if not names or len(set(names)) < len(names):
        raise SecateurError(f"expected layers with different names, got {names}")
    if granularity < 1:
        raise SecateurError(f"expected a granularity of at least 1, got {granularity}")


def _take_hull_steps(options: Sequence[Options], budget: int) -> tuple[list[int], float]:
    """Steps in the order of their gain, up to the first that does not fit.

    Returns:
        The option of each layer, and the smallest loss that any choice could have: that step taken
        in part, to spend the budget exactly.
    """
    steps = [
        (-gain(layer, start, stop), index, stop)
        for index, layer in enumerate(options)
        for start, stop in pairwise(lower_hull(layer))
    ]
    chosen = [0] * len(options)
    left = budget - _cost(options, chosen)
    for negative_gain, index, stop in sorted(steps):
        cost = int(options[index].costs[stop] - options[index].costs[chosen[index]])
        if cost > left:
            return chosen, _loss(options, chosen) + negative_gain * left
        chosen[index] = stop
        left -= cost
    return chosen, _loss(options, chosen)


def _spend_the_rest(options: Sequence[Options], chosen: list[int], left: int) -> None:
    """Best gain first, until nothing that lowers the loss fits; changes `chosen`."""
    while True:
        best: tuple[float, int, int] | None = None
        for index, layer in enumerate(options):
            step = _best_step(layer, chosen[index], left)
            if step is not None and (best is None or step[0] > best[0]):
                best = (step[0], index, step[1])
        if best is None:
            return
        _, index, stop = best
        left -= int(options[index].costs[stop] - options[index].costs[chosen[index]])
        chosen[index] = stop


def _best_step(layer: Options, start: int, left: int) -> tuple[float, int] | None:
    """(gain, option) of the best step up that costs at most `left`; None if none gains."""
    costs = layer.costs[start + 1 :] - layer.costs[start]
    fitting = int(np.searchsorted(costs, left, side="right"))
    if fitting == 0:
        return None
    saved = layer.losses[start] - layer.losses[start + 1 : start + 1 + fitting]
    gains = saved / costs[:fitting]
    best = int(gains.argmax())
    return (float(gains[best]), start + 1 + best) if gains[best] > 0 else None


def _cost(options: Sequence[Options], chosen: Sequence[int]) -> int:
    return sum(int(layer.costs[option]) for layer, option in zip(options, chosen, strict=True))


def _loss(options: Sequence[Options], chosen: Sequence[int]) -> float:
    return sum(float(layer.losses[option]) for layer, option in zip(options, chosen, strict=True))
