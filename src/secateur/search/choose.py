"""Choose by the validation split: the best cut alone, then cuts together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from secateur.lowrank import Intervention
from secateur.progress import Progress
from secateur.search.compose import Composition, Cuts, compose, published_order
from secateur.search.options import SearchOptions
from secateur.search.space import SearchSpace
from secateur.search.trials import SplitMeasure, Trials, cut_name


@dataclass(frozen=True)
class Choice:
    """What the validation split says."""

    singles: tuple[Intervention, ...]
    """Every cut that was tried alone, in the order of the trials."""
    best: Intervention
    """Of these; among equals the first in published order."""
    composition: Composition


def choose(
    space: SearchSpace,
    trials: Trials,
    validation: SplitMeasure,
    lower_is_better: bool,
    options: SearchOptions,
    progress: Progress,
) -> Choice:
    """Try every cut alone, and the promising ones together."""

    def gain(cuts: Cuts) -> float:
        value = trials.measure(cuts, validation).score.value
        if math.isnan(value):
            return -math.inf
        return -value if lower_is_better else value

    singles = [cut for cuts in space.cuts.values() for cut in cuts]
    progress.begin("search", len(singles) + 1)
    dense = gain(())
    progress.advance(f"dense  {abs(dense):.4f}")
    gains: dict[Intervention, float] = {}
    for cut in singles:
        gains[cut] = gain((cut,))
        progress.advance(f"{cut_name(cut)}  {abs(gains[cut]):.4f}")
    best = max(published_order(singles), key=lambda cut: gains[cut])
    candidates = _candidates(gains, dense, best, options)
    return Choice(tuple(singles), best, compose(candidates, best, gain, progress))


def _candidates(
    gains: Mapping[Intervention, float], dense: float, best: Intervention, options: SearchOptions
) -> list[Intervention]:
    if options.compose == "all":
        return list(gains)
    improving = [cut for cut, gain in gains.items() if gain > dense]
    return improving if options.compose == "improving" else [best] if best in improving else []
