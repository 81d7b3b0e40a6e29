"""What is known of every choice: its time on this machine, its bytes, and what it loses.

Times and losses are taken to add up: the time of a model is its rest plus its layers', and its loss
rises by the sum of what each choice alone would cost. The first holds well on one stream of work,
the second for few changes only. Both are checked against models once they are built, and the table
is then put right: times by `retimed`, losses by `search.seen_from`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from secateur.errors import SecateurError

Part = Literal["block", "attention", "mlp"]
DENSE = "dense"
SPARSE24 = "2:4"

# A choice must save so much of what its dense layer takes, else the layer stays dense.
LEAST_GAIN = 0.05

# Sums of times in another order differ by less.
_ROUNDING = 1e-9

# What a built model saves over what it was predicted to save is believed within these bounds.
_SAVINGS = (0.5, 2.0)


@dataclass(frozen=True)
class Choice:
    """A form that a matrix may take."""

    form: str
    """`dense`, `2:4`, or `rank` and a number."""
    milliseconds: float
    num_bytes: int
    loss: float
    """Estimated rise of the mean loss, nats a token, with everything else dense; at least 0."""
    rank: int | None = None
    """Of factors."""


@dataclass(frozen=True)
class Unit:
    """A matrix, and the forms that it may take; the first is to stay dense."""

    name: str
    block: int
    shape: tuple[int, int]
    """(N, K)."""
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        forms = [choice.form for choice in self.choices]
        if forms[:1] != [DENSE] or len(set(forms)) < len(forms):
            raise SecateurError(
                f"expected the forms of {self.name} to differ and to begin with dense, got {forms}"
            )

    @property
    def dense(self) -> Choice:
        """To stay as it is."""
        return self.choices[0]


@dataclass(frozen=True)
class Removal:
    """A block, or its attention or MLP, that may go; its matrices then need no form."""

    block: int
    part: Part
    units: tuple[str, ...]
    """Names of the matrices that go with it."""
    milliseconds: float
    """What goes beside these matrices: norms, attention itself, additions."""
    num_bytes: int
    """Of parameters that are none of these matrices."""
    loss: float
    """Measured rise of the mean loss, nats a token, with everything else dense; at least 0."""

    @property
    def name(self) -> str:
        """Such as `block 3` or `attention of block 3`."""
        return f"block {self.block}" if self.part == "block" else f"{self.part} of {self.block}"


@dataclass(frozen=True)
class Limit:
    """What a plan must keep to; exactly one is given."""

    milliseconds: float | None = None
    num_bytes: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.milliseconds, self.num_bytes) if value is not None]
        if len(given) != 1 or not 0 < given[0] < float("inf"):
            raise SecateurError(
                "expected one limit above 0, milliseconds or bytes, got "
                f"{self.milliseconds} and {self.num_bytes}"
            )

    def of(self, choice: Choice | Removal) -> float:
        """What a choice takes, or a removal saves, of what is limited."""
        return choice.num_bytes if self.num_bytes is not None else choice.milliseconds

    @property
    def value(self) -> float:
        """The limit itself."""
        return float(self.milliseconds if self.num_bytes is None else self.num_bytes)  # type: ignore[arg-type]

    def excess(self, selection: "Selection") -> float:
        """By how much a selection is above the limit; 0 within it, and for what times round to."""
        if self.num_bytes is not None:
            return max(0, selection.num_bytes - self.num_bytes)
        above = selection.milliseconds - self.value
        return above if above > _ROUNDING * self.value else 0.0


@dataclass(frozen=True)
class Table:
    """All choices of a model."""

    units: tuple[Unit, ...]
    removals: tuple[Removal, ...]
    num_blocks: int
    rest_milliseconds: float
    """Of the dense model, everything but its units."""
    rest_bytes: int
    rest_loss: float = 0.0
    """Nats a token by which a built selection loses more than its choices in sum (see
    `search.seen_from`); 0 as measured."""

    def __post_init__(self) -> None:
        names = [unit.name for unit in self.units]
        if len(set(names)) < len(names):
            raise SecateurError("expected units with different names")
        unknown = {name for removal in self.removals for name in removal.units} - set(names)
        if unknown:
            raise SecateurError(f"removals name units that are not there: {sorted(unknown)}")

    @property
    def dense_milliseconds(self) -> float:
        """Of the whole model, nothing changed."""
        return self.rest_milliseconds + sum(unit.dense.milliseconds for unit in self.units)

    @property
    def dense_bytes(self) -> int:
        """Of the whole model, nothing changed."""
        return self.rest_bytes + sum(unit.dense.num_bytes for unit in self.units)

    def rest(self, limit: Limit) -> float:
        """What the rest takes of what is limited."""
        return self.rest_bytes if limit.num_bytes is not None else self.rest_milliseconds


@dataclass(frozen=True)
class Selection:
    """One choice for everything."""

    forms: Mapping[str, Choice]
    """By unit that is left."""
    removals: tuple[Removal, ...]
    milliseconds: float
    """Predicted, of the whole model."""
    num_bytes: int
    loss: float
    """Predicted rise of the mean loss, nats a token."""

    @property
    def is_dense(self) -> bool:
        """Whether nothing is changed."""
        return not self.removals and all(c.form == DENSE for c in self.forms.values())


def select(table: Table, forms: Mapping[str, str], removals: Iterable[Removal] = ()) -> Selection:
    """Add up what a selection takes and loses.

    Args:
        table: all choices.
        forms: by unit; a unit that is not named and not removed stays dense.
        removals: of the table.

    Raises:
        SecateurError: a form is not offered, two removals meet in a block that goes whole, a
            removed unit is given a form, or no block is left.
    """
    gone = tuple(removals)
    _check_removals(table, gone)
    removed = {name for removal in gone for name in removal.units}
    if removed & set(forms):
        raise SecateurError(f"{sorted(removed & set(forms))[0]} has a form, but it is removed")
    chosen = {u.name: _choice(u, forms.get(u.name, DENSE)) for u in table.units}
    chosen = {name: choice for name, choice in chosen.items() if name not in removed}
    return Selection(
        forms=chosen,
        removals=gone,
        milliseconds=table.rest_milliseconds
        + sum(choice.milliseconds for choice in chosen.values())
        - sum(removal.milliseconds for removal in gone),
        num_bytes=table.rest_bytes
        + sum(choice.num_bytes for choice in chosen.values())
        - sum(removal.num_bytes for removal in gone),
        loss=table.rest_loss
        + sum(choice.loss for choice in chosen.values())
        + sum(removal.loss for removal in gone),
    )


def counted_by(table: Table, selection: Selection) -> Selection:
    """The same choices as another table of the same model counts them."""
    gone = {removal.name for removal in selection.removals}
    return select(
        table,
        {name: choice.form for name, choice in selection.forms.items()},
        [removal for removal in table.removals if removal.name in gone],
    )


def retimed(table: Table, selection: Selection, milliseconds: float) -> Table:
    """The table with all savings scaled alike, so that it predicts a selection's time as measured.

    Args:
        table: that predicts the selection.
        selection: which was built.
        milliseconds: that it takes, in the table's scale.
    """
    predicted = table.dense_milliseconds - selection.milliseconds
    if predicted <= 0:
        return table
    scale = (table.dense_milliseconds - milliseconds) / predicted
    scale = min(max(scale, _SAVINGS[0]), _SAVINGS[1])
    dense = {unit.name: unit.dense.milliseconds for unit in table.units}
    units = tuple(
        replace(unit, choices=tuple(_saving(choice, unit, scale) for choice in unit.choices))
        for unit in table.units
    )
    removals = []
    for removal in table.removals:
        own = sum(dense[name] for name in removal.units)
        saved = scale * (removal.milliseconds + own)
        removals.append(replace(removal, milliseconds=saved - own))
    return replace(table, units=units, removals=tuple(removals))


def _saving(choice: Choice, unit: Unit, scale: float) -> Choice:
    dense = unit.dense.milliseconds
    return replace(choice, milliseconds=max(0.0, dense - scale * (dense - choice.milliseconds)))


def _choice(unit: Unit, form: str) -> Choice:
    for choice in unit.choices:
        if choice.form == form:
            return choice
    offered = ", ".join(choice.form for choice in unit.choices)
    raise SecateurError(f"expected a form of {unit.name} among {offered}, got {form!r}")


def _check_removals(table: Table, removals: tuple[Removal, ...]) -> None:
    blocks = [removal.block for removal in removals]
    if len(set(blocks)) < len(blocks):
        raise SecateurError(
            f"at most one removal a block, got {', '.join(removal.name for removal in removals)}"
        )
    whole = sum(removal.part == "block" for removal in removals)
    if whole and whole >= table.num_blocks:
        raise SecateurError("expected a block to be left, but all are removed")
