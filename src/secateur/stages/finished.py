"""What a stage asks of those who keep its finished blocks, so that it can be interrupted."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from secateur.report.record import BlockRecord, FactoredLayer

Layer = TypeVar("Layer")
"""The record of a matrix."""


class FinishedBlocks(Protocol[Layer]):
    """Blocks that a stage is done with; an interrupted one goes on after them."""

    def read(self, index: int) -> tuple[list[Layer], BlockRecord, list[int]] | None:
        """What was done to a block, and `together`; None if it is not finished."""

    def save(
        self, index: int, layers: Sequence[Layer], block: BlockRecord, together: Sequence[int]
    ) -> None:
        """Keep a block, which is open and finished, and what was done to it.

        `together`: by batch, how many samples were run together, as there was memory for. Only in
        the same batches does the rest come out the same, bit for bit.
        """


class FinishedFactoring(FinishedBlocks[FactoredLayer], Protocol):
    """The same for factors, whose ranks are settled before any block is changed."""

    def read_ranks(self) -> dict[str, int | None] | None:
        """Ranks by name of the first matrix that they are for; None if they are not settled."""

    def save_ranks(self, ranks: Mapping[str, int | None]) -> None:
        """Keep them."""
