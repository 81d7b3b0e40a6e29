"""How a router spread calibration tokens over experts, as rows and in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from secateur.report.lists import MISSING, listed
from secateur.report.record import BlockRecord, PruneRecord

_BLOCKS_SHOWN = 4


@dataclass(frozen=True)
class RoutingRow:
    """The experts of one block."""

    block: int
    num_experts: int
    least: int
    """Tokens of the expert that was sent fewest."""
    median: float
    most: int
    num_few: int | None
    """Experts that were sent fewer tokens than the stage asks for; None if it does not say."""

    @property
    def few(self) -> str:
        """`num_few` as text."""
        return MISSING if self.num_few is None else str(self.num_few)


def routing_rows(stage: PruneRecord) -> list[RoutingRow]:
    """A row for every block with experts that calibration went through."""
    return [_row(block, stage.min_expert_tokens) for block in stage.blocks if block.expert_tokens]


def _row(block: BlockRecord, enough: int | None) -> RoutingRow:
    tokens = block.expert_tokens
    few = None if enough is None else sum(count < enough for count in tokens)
    return RoutingRow(
        block.block, len(tokens), min(tokens), float(median(tokens)), max(tokens), few
    )


def routing_notes(stage: PruneRecord) -> list[str]:
    """A sentence if there are experts that were sent too few tokens."""
    rows = [row for row in routing_rows(stage) if row.num_few]
    if not rows:
        return []
    count = sum(row.num_few or 0 for row in rows)
    total = sum(row.num_experts for row in routing_rows(stage))
    blocks = _blocks([row.block for row in rows])
    remedy = (
        "their statistics are those of all tokens, as calibrate_all_experts asks"
        if stage.calibrate_all_experts
        else "give more calibration samples, or calibrate_all_experts"
    )
    subject = "expert was" if total == 1 else "experts were"
    return [
        f"{count} of {total} {subject} sent fewer than {stage.min_expert_tokens} calibration "
        f"tokens by the router, in {blocks}: {remedy}"
    ]


def _blocks(blocks: Sequence[int]) -> str:
    shown = [str(block) for block in blocks[:_BLOCKS_SHOWN]]
    if len(blocks) > _BLOCKS_SHOWN:
        return f"{len(blocks)} blocks: {', '.join(shown)}, …"
    return f"block{'s' if len(blocks) > 1 else ''} {listed(shown)}"
