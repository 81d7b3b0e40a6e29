"""What `accelerate` did to a model, layer by layer, and the way back."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from secateur.errors import SecateurError
from secateur.report.numbers import format_bytes
from secateur.runtime.layers import Form

Fused = Literal["", "side by side", "silu_and_mul"]
_WIDTH = 80


@dataclass(frozen=True)
class LayerRow:
    """One layer of an accelerated model, or several that are multiplied together."""

    names: tuple[str, ...]
    """In the order of their rows."""
    shape: tuple[int, int]
    """(N, K) of all of them."""
    form: Form
    fused: Fused
    kernels: tuple[tuple[int, str], ...]
    """Number of tokens, and the backend and config that dispatch chooses for them."""
    reason: str
    bytes_before: int
    bytes_after: int

    def to_plain(self) -> dict[str, Any]:
        """Values that JSON knows."""
        plain = asdict(self)
        plain["names"], plain["shape"] = list(self.names), list(self.shape)
        plain["kernels"] = [{"tokens": m, "kernel": kernel} for m, kernel in self.kernels]
        return plain


@dataclass(eq=False)
class Acceleration:
    """The layers of an accelerated model: what they are now, and why."""

    rows: tuple[LayerRow, ...]
    device: str
    """As CUDA reports it, or "cpu"."""
    policy: str
    note: str = ""
    """What holds for all layers, such as that no speed-up is claimed."""
    _undo: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def bytes_before(self) -> int:
        """Of the weights of all layers."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Of the weights of all layers, dense copies included."""
        return sum(row.bytes_after for row in self.rows)

    def undo(self) -> None:
        """Make the model what it was: names, tensors and logits, bit for bit.

        Zeros that were -0.0 in a weight that was packed come back as 0.0.

        Raises:
            SecateurError: it was undone before; or 2:4 layers were cast to a dtype that cannot be
                packed, and it can be undone once they are cast back.
        """
        if self._undo is None:
            raise SecateurError("expected an acceleration to undo, but it was undone before")
        self._undo()
        self._undo = None

    def to_plain(self) -> list[dict[str, Any]]:
        """One dictionary a row, of values that JSON knows."""
        return [row.to_plain() for row in self.rows]

    def table(self) -> Table:
        """The layers, for a terminal of 80 columns; those that differ in their block alone stand
        together. `how` is the number of an explanation in `reasons`.
        """
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        grouped = _alike(self.rows)
        places = [_place(alike[0].names, len(alike)) for alike in grouped]
        longest_word = max((len(word) for place in places for word in place.split()), default=0)
        table.add_column("layers", overflow="fold", min_width=min(longest_word, _WIDTH // 2))
        table.add_column("shape", no_wrap=True)
        table.add_column("form")
        table.add_column("bytes", no_wrap=True)
        table.add_column("how", no_wrap=True, min_width=3)
        numbers = {reason: str(number) for number, reason in enumerate(self.reasons(), start=1)}
        for place, alike in zip(places, grouped, strict=True):
            cells = (place, *_cells(alike), numbers[_reason(alike[0])])
            table.add_row(*map(Text, cells))
        return table

    def reasons(self) -> tuple[str, ...]:
        """Which kernels run layers, and why: each once, in the order of `table`."""
        return tuple(dict.fromkeys(_reason(alike[0]) for alike in _alike(self.rows)))

    def __rich__(self) -> Group:
        """So that rich prints what holds for all, the table, and the explanations below it."""
        total = f"{format_bytes(self.bytes_before)} -> {format_bytes(self.bytes_after)}"
        title = f"Layers on {self.device}, policy {self.policy}: {total}"
        if self.note:
            title += f" ({self.note})"
        lines = [Text(f"{number}: {text}") for number, text in enumerate(self.reasons(), start=1)]
        return Group(Text(title), self.table(), *lines)

    def __str__(self) -> str:
        console = Console(width=_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _alike(rows: Sequence[LayerRow]) -> list[list[LayerRow]]:
    """Rows that say the same, but for their blocks."""
    found: dict[object, list[LayerRow]] = {}
    for row in rows:
        names = tuple(_without_numbers(name) for name in row.names)
        key = (names, row.shape, row.form, row.fused, row.kernels, row.reason)
        found.setdefault(key, []).append(row)
    return list(found.values())


def _without_numbers(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _cells(alike: Sequence[LayerRow]) -> tuple[str, ...]:
    row = alike[0]
    before, after = sum(r.bytes_before for r in alike), sum(r.bytes_after for r in alike)
    size = format_bytes(before)
    if after != before:
        size += f" -> {format_bytes(after)}"
    form = f"{row.form},\n{row.fused}" if row.fused else row.form
    return f"{row.shape[0]} x {row.shape[1]}", form, size


def _reason(row: LayerRow) -> str:
    return f"{_kernels(row.kernels)}; {row.reason}"


def _place(names: Sequence[str], times: int) -> str:
    """Children by their parent, which all of them have in common."""
    parent, _, first = names[0].rpartition(".")
    children = [first, *(name.rpartition(".")[2] for name in names[1:])]
    where = _without_numbers(parent) if times > 1 else parent
    return f"{where}: {', '.join(children)}" + (f" ({times} times)" if times > 1 else "")


def _kernels(kernels: Sequence[tuple[int, str]]) -> str:
    """Once where it is the same for all numbers of tokens."""
    if len({kernel for _, kernel in kernels}) == 1:
        return kernels[0][1]
    return ", ".join(f"{m} tokens: {kernel}" for m, kernel in kernels)
