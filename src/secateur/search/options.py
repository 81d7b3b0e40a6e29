"""How a search goes."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.errors import SecateurError
from secateur.lowrank import FRACTIONS, MatrixType
from secateur.search.split import check_validation_fraction

Compose = Literal["improving", "all", "none"]
"""Which cuts the composition tries: those that alone beat the dense model, all of them (as
published), or none."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The grid, the filter, the split and the composition."""

    types: tuple[MatrixType, ...] | None = None
    """None: all that the model has."""
    blocks: tuple[int, ...] | None = None
    """From 0; None: all."""
    fractions: tuple[float, ...] = FRACTIONS
    """Kept parts of the full rank, each above 0 and below 1."""
    filter: int | None = None
    """Search only as many (matrix type, block) pairs, those with the lowest predicted loss."""
    validation_fraction: float = 0.5
    """Of the items; the rest is the test split. (Published: 0.2.)"""
    seed: int = 0
    """Of the split."""
    compose: Compose = "improving"
    batch_size: int = 16
    """Sequences in a forward pass."""
    analyse_items: int = 0
    """Answer so many items of the test split with the discarded components."""
    prompts: tuple[str, ...] = ()
    """Continue these with the discarded components."""
    max_new_tokens: int = 10
    """Of an answer to a prompt."""

    def __post_init__(self) -> None:
        self._check_grid()
        check_validation_fraction(self.validation_fraction)
        if self.compose not in get_args(Compose):
            raise SecateurError(
                f"expected compose out of {', '.join(get_args(Compose))}, got {self.compose!r}"
            )
        for name, value, least in (
            ("filter", self.filter, 1),
            ("batch_size", self.batch_size, 1),
            ("analyse_items", self.analyse_items, 0),
            ("max_new_tokens", self.max_new_tokens, 1),
        ):
            if value is not None and value < least:
                raise SecateurError(f"expected {name} of at least {least}, got {value}")

    def _check_grid(self) -> None:
        known = get_args(MatrixType)
        for kind in self.types or ():
            if kind not in known:
                raise SecateurError(
                    f"expected matrix types out of {', '.join(known)}, got {kind!r}"
                )
        for block in self.blocks or ():
            if block < 0:
                raise SecateurError(f"expected blocks from 0, got {block}")
        for fraction in self.fractions:
            if not 0.0 < fraction < 1.0:
                raise SecateurError(f"expected kept fractions above 0 and below 1, got {fraction}")
        for name, values in (
            ("types", self.types),
            ("blocks", self.blocks),
            ("fractions", self.fractions),
        ):
            if values is not None and not values:
                raise SecateurError(f"expected at least one of {name}, got none")
            if values is not None and len(set(values)) < len(values):
                raise SecateurError(f"expected each of {name} once, got {list(values)}")
