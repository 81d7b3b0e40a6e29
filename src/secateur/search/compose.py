"""Several cuts together: from the top block down, each kept only if the score improves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.lowrank import Intervention
from secateur.progress import Progress
from secateur.search.space import TYPES

Cuts = tuple[Intervention, ...]
Gain = Callable[[Cuts], float]
"""The validation score of some cuts together; higher is better."""


@dataclass(frozen=True)
class Step:
    """A cut that was accepted."""

    cut: Intervention
    replaces: Intervention | None
    """The one at the same matrix that it takes the place of."""
    cuts: Cuts
    """All cuts from then on."""


@dataclass(frozen=True)
class Composition:
    """What the composition ended with."""

    cuts: Cuts
    steps: tuple[Step, ...]
    num_trials: int


def published_order(cuts: Sequence[Intervention]) -> list[Intervention]:
    """Top block first, then by type, then the smallest fraction first (section 4 of the paper)."""
    return sorted(cuts, key=lambda cut: (-cut.block, TYPES.index(cut.matrix), cut.fraction))


def compose(
    candidates: Sequence[Intervention],
    best_single: Intervention,
    gain: Gain,
    progress: Progress,
) -> Composition:
    """Compose greedily; never worse than the dense model or the best single cut.

    The published rule starts from the dense model. Where what it finds is worse than the best
    single cut, the walk is made again from that one, and can then only get better.

    Args:
        candidates: to try, in any order.
        best_single: the best cut alone.
        gain: of cuts together; may be called more than once for the same cuts.
        progress: told of every trial.
    """
    order = published_order(candidates)
    first = _walk(order, (), gain, progress)
    if not gain((best_single,)) > gain(first.cuts):
        return first
    again = _walk(order, (best_single,), gain, progress)
    return Composition(again.cuts, again.steps, first.num_trials + again.num_trials)


def _walk(
    order: Sequence[Intervention], start: Cuts, gain: Gain, progress: Progress
) -> Composition:
    chosen, best, num_trials = start, gain(start), 0
    steps = [Step(cut, None, start) for cut in start]
    order = [cut for cut in order if cut not in start]
    if order:
        progress.begin("compose", len(order))
    for cut in order:
        old = next((c for c in chosen if (c.matrix, c.block) == (cut.matrix, cut.block)), None)
        trial = (*(c for c in chosen if c is not old), cut)
        num_trials += 1
        # Also false for a score that is not a number.
        if (value := gain(trial)) > best:
            chosen, best = trial, value
            steps.append(Step(cut, old, trial))
        progress.advance(f"cuts: {len(chosen)}")
    return Composition(chosen, tuple(steps), num_trials)
