"""What a drop stage did, in words."""

import math

from secateur.report.lists import listed
from secateur.report.record import DropRecord


def dropped_words(stage: DropRecord) -> str:
    """`blocks 3 and 4 dropped`, or `attention of blocks 3 and 4 removed`."""
    blocks = "block" if len(stage.dropped) == 1 else "blocks"
    which = f"{blocks} {listed(sorted(stage.dropped))}"
    if stage.granularity == "block":
        return f"{which} dropped"
    return f"{part_name(stage)} of {which} removed"


def criterion_words(stage: DropRecord) -> str:
    """`perplexity, measured anew after each removal`."""
    name = stage.criterion.replace("_", " ")
    return f"{name}, measured anew after each removal" if len(stage.rounds) > 1 else name


def score_words(stage: DropRecord) -> str:
    """What the scores of the first round are, as the label of an axis."""
    what = "block" if stage.granularity == "block" else f"block’s {part_name(stage)}"
    return {
        "block_influence": "Block Influence\n(1 − mean cosine)",
        "angular_distance": "Angular distance across\nthe span from this block on",
        "relative_magnitude": "Relative magnitude\n(‖added‖ / ‖output‖)",
        "perplexity": f"Perplexity without\nthis {what}",
    }.get(stage.criterion, "Score")


def score_caption(stage: DropRecord) -> str:
    """The same as a sentence below the picture."""
    what = "block" if stage.granularity == "block" else f"block’s {part_name(stage)}"
    caption = {
        "block_influence": f"how much each {what} turns its input, 1 − mean cosine of input and "
        "output",
        "angular_distance": "arccos of the cosine between what enters a span of blocks and what "
        "leaves it, of the last token, divided by π; by the span’s first block",
        "relative_magnitude": f"how much of its output each {what} itself added, mean of ‖added‖ / "
        "‖output‖",
        "perplexity": f"perplexity on the calibration tokens without each {what} alone",
    }.get(stage.criterion, "scores by block")
    return f"{stage.criterion.replace('_', ' ').capitalize()} before dropping: {caption}."


def perplexities(stage: DropRecord) -> tuple[float, ...]:
    """On the calibration tokens, before and after each removal as far as it was measured.

    Infinite where a loss is beyond what an exponential can be taken of.
    """
    return tuple(math.inf if loss > 700 else math.exp(loss) for loss in stage.losses)


def part_name(stage: DropRecord) -> str:
    """`block`, `attention` or `MLP`."""
    return "MLP" if stage.granularity == "mlp" else stage.granularity
