"""Which blocks a drop stage takes: scores measured by its criterion, once or after each removal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.depth.angular_distance import AngularDistance, nearest_span
from secateur.depth.block_influence import BlockInfluence
from secateur.depth.choose import least_influential
from secateur.depth.relative_magnitude import RelativeMagnitude
from secateur.progress import Progress
from secateur.recipe import DropBlocksStage
from secateur.report.record import DropRound
from secateur.stages.drop_walk import Walk

Scores = tuple[float | None, ...]


@dataclass(frozen=True)
class DropChoice:
    """What is to go, and why."""

    rounds: tuple[DropRound, ...]
    order: tuple[int, ...]
    """The blocks, the first to go first."""
    losses: tuple[float, ...]
    """Before, after the first removal, and so on as far as it came out on the way."""


def choose_blocks(
    walk: Walk, stage: DropBlocksStage, candidates: Sequence[int], progress: Progress
) -> DropChoice:
    """Measure the blocks and choose.

    Args:
        walk: at its beginning; afterwards it is anywhere, and its `gone` holds what was chosen.
        stage: with a count.
        candidates: the blocks that may go.
        progress: told after each block.

    Raises:
        SecateurError: a score cannot be measured or is not finite.
    """
    assert stage.count is not None
    if stage.criterion == "angular_distance":
        entry = _choose_span(walk, stage.count, candidates, progress)
        walk.gone.update(entry.chosen)
        return DropChoice((entry,), entry.chosen, ())
    at_once = 1 if stage.remeasure else stage.count
    rounds: list[DropRound] = []
    losses: list[float] = []
    for number in range(stage.count // at_once):
        if number:
            walk.restart()
        left = [index for index in candidates if index not in walk.gone]
        scores, now = _measure(walk, stage, left, progress)
        chosen = least_influential({index: _known(scores[index]) for index in left}, at_once)
        walk.gone.update(chosen)
        rounds.append(DropRound(scores=scores, chosen=chosen))
        if now is not None:
            losses += [] if losses else [now]
            losses.append(_known(scores[chosen[0]]))
    order = tuple(index for entry in rounds for index in entry.chosen)
    return DropChoice(tuple(rounds), order, tuple(losses))


def trace_losses(walk: Walk, order: Sequence[int], progress: Progress) -> tuple[float, ...]:
    """The loss in nats a token before, and after each of the blocks in `order` has gone.

    Args:
        walk: anywhere.
        order: blocks, the first to go first.
        progress: told after each removal.
    """
    progress.begin("loss after each removal", len(order) + 1)
    losses = []
    for count in range(len(order) + 1):
        walk.gone = set(order[:count])
        walk.restart()
        for index in range(len(walk.blocks)):
            walk.advance(index)
        losses.append(walk.loss())
        progress.advance(f"{count} removed  loss {losses[-1]:.4f}")
    return tuple(losses)


def _measure(
    walk: Walk, stage: DropBlocksStage, left: Sequence[int], progress: Progress
) -> tuple[Scores, float | None]:
    """Scores by block, and the loss of the model as it is where that was measured too."""
    if stage.criterion == "perplexity":
        return _losses_without(walk, left, progress)
    if stage.criterion == "relative_magnitude":
        return _by_pairs(walk, RelativeMagnitude, "relative magnitude", progress), None
    return _by_pairs(walk, BlockInfluence, "Block Influence", progress), None


def _by_pairs(
    walk: Walk,
    measure: Callable[[], BlockInfluence | RelativeMagnitude],
    title: str,
    progress: Progress,
) -> Scores:
    progress.begin(title, len(walk.blocks))
    scores: list[float | None] = []
    for index in range(len(walk.blocks)):
        if not _is_there(walk, index):
            walk.advance(index)
            scores.append(None)
            progress.advance(f"block {index}  gone")
            continue
        score = measure()
        for before, after in walk.outputs(index):
            score.add(before, after)
        scores.append(score.value())
        progress.advance(f"block {index}  {score.value():.4f}")
    return tuple(scores)


def _is_there(walk: Walk, index: int) -> bool:
    """Whether a block has what goes."""
    has_it = walk.part is None or walk.sublayers[index].part(walk.part) is not None
    return has_it and index not in walk.gone


def _losses_without(
    walk: Walk, left: Sequence[int], progress: Progress
) -> tuple[Scores, float | None]:
    progress.begin("loss without each block", len(walk.blocks))
    scores: list[float | None] = []
    for index in range(len(walk.blocks)):
        loss = walk.loss_without(index) if index in left else None
        walk.advance(index)
        scores.append(loss)
        progress.advance(f"block {index}  " + ("kept" if loss is None else f"loss {loss:.4f}"))
    return tuple(scores), walk.loss()


def _choose_span(
    walk: Walk, count: int, candidates: Sequence[int], progress: Progress
) -> DropRound:
    progress.begin("angular distance", len(walk.blocks))
    states = AngularDistance()
    for batch in walk.inputs.hidden:
        states.add(0, batch)
    for index in range(len(walk.blocks)):
        walk.advance(index)
        for batch in walk.inputs.hidden:
            states.add(index + 1, batch)
        progress.advance(f"block {index}")
    distances = states.spans(count)
    chosen = nearest_span(distances, count, candidates[0], candidates[-1] + 1)
    without_span = (None,) * (len(walk.blocks) - len(distances))
    return DropRound(scores=(*distances, *without_span), chosen=chosen)


def _known(score: float | None) -> float:
    assert score is not None
    return score
