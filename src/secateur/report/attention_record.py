"""An analysis of attention as data: `attention.json`, versioned, read back without the model.

Ranks and column masses are means over samples: numbers of singular values and of columns, from 1
to the length of the windows.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.report.record_file import read_record, record_file

ATTENTION_FILE = "attention.json"


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """One block's heads."""

    block: int
    """From 0."""
    ranks: tuple[float, ...]
    """Mean approximate rank by head."""
    masses: tuple[float, ...]
    """Mean number of columns that hold the share of attention, by head."""

    def __post_init__(self) -> None:
        """Refuse a block that has no heads, or not both numbers for each."""
        if not self.ranks or len(self.ranks) != len(self.masses):
            raise SecateurError(
                "expected a rank and a column mass for each of one head or more, got "
                f"{len(self.ranks)} and {len(self.masses)}"
            )
        broken = [value for value in (*self.ranks, *self.masses) if not 1 <= value < math.inf]
        if broken:
            raise SecateurError(
                f"expected ranks and column masses of at least 1, got {broken[0]:g} in block "
                f"{self.block}"
            )

    @property
    def max_rank(self) -> float:
        """Of the head that does most: what the paper draws."""
        return max(self.ranks)

    @property
    def max_mass(self) -> float:
        """Of the head that looks at most columns."""
        return max(self.masses)


@dataclass(frozen=True, kw_only=True)
class AnalysedModelRecord:
    """The model whose attention it is."""

    source: str
    architecture: str
    num_blocks: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class AttentionTextRecord:
    """What the model read."""

    source: str
    num_samples: int
    max_seq_length: int
    seed: int
    tokens_sha256: str


@dataclass(frozen=True, kw_only=True)
class AttentionRecord:
    """How much the attention of every block and head says."""

    format_version: Literal[1] = 1
    created: str
    """ISO 8601, UTC."""
    seconds: float
    versions: dict[str, str]
    machine: dict[str, str]
    model: AnalysedModelRecord
    text: AttentionTextRecord
    share: float
    """Of squared singular values that a rank stands for, and of attention a column mass."""
    threshold: float
    """A block is lazy where the mean ranks of all its heads are below this."""
    even_rank: float
    """Of attention that looks at all tokens so far alike, for windows of this length."""
    even_mass: float
    """The same for its column mass."""
    lazy: tuple[int, ...]
    """The lazy blocks, ascending."""
    blocks: tuple[AttentionBlock, ...]
    """All of them, ascending."""

    def __post_init__(self) -> None:
        """Refuse blocks that are not all there, and lazy ones that are not among them."""
        numbers = [block.block for block in self.blocks]
        if not numbers or numbers != list(range(len(numbers))):
            raise SecateurError(f"expected blocks 0, 1 and so on, got {numbers}")
        if list(self.lazy) != sorted(set(self.lazy) & set(numbers)):
            raise SecateurError(
                f"expected lazy blocks among 0 to {numbers[-1]}, ascending, got {list(self.lazy)}"
            )

    def to_json(self) -> str:
        """JSON text that `attention_from_text` reads back."""
        return json.dumps(to_plain(self), indent=2) + "\n"


def attention_from_text(text: str, source: str = ATTENTION_FILE) -> AttentionRecord:
    """Parse an analysis of attention.

    Raises:
        SecateurError: the text is no such record of this format.
    """
    try:
        return from_plain(AttentionRecord, json.loads(text))
    except json.JSONDecodeError as error:
        raise SecateurError(f"{source} is not JSON: {error}") from None
    except SecateurError as error:
        raise SecateurError(f"{source} is not an analysis of attention: {error}") from None


def load_attention(path: str | Path) -> AttentionRecord:
    """Read an analysis from its folder or the JSON file itself.

    Raises:
        SecateurError: there is none, or it is something else.
    """
    file = record_file(path, ATTENTION_FILE)
    return attention_from_text(read_record(file), str(file))
