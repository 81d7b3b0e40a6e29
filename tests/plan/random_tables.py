"""Small random tables of choices."""

from itertools import product

import numpy as np

from secateur.errors import SecateurError
from secateur.plan.table import Choice, Limit, Removal, Selection, Table, Unit, select


def random_table(seed: int, num_blocks: int, units_each: int, parts: bool, scale: int = 1) -> Table:
    """Times from 1 to 9, losses up to 1; ties are likely among times, not among losses.

    With a `scale`, bytes are so many times as large, and hardly two choices are of a size.
    """
    draw, odd = np.random.default_rng(seed), np.random.default_rng(seed + 1)

    def size(num_bytes: int) -> int:
        return num_bytes * scale + (int(odd.integers(0, 500)) if scale > 1 else 0)

    units = []
    removals = []
    for block in range(num_blocks):
        names = [f"b{block}.u{index}" for index in range(units_each)]
        for name in names:
            dense = float(draw.integers(4, 10))
            choices = [Choice("dense", dense, size(int(dense) * 10), 0.0)]
            for rank in (16, 32)[: int(draw.integers(0, 3))]:
                time = float(draw.integers(1, 11))
                choices.append(
                    Choice(f"rank {rank}", time, size(int(time) * 7), float(draw.random()), rank)
                )
            units.append(Unit(name, block, (48, 32), tuple(choices)))
        removals.append(_removal(draw, block, "block", names))
        if parts and units_each > 1:
            removals.append(_removal(draw, block, "attention", names[:1]))
            removals.append(_removal(draw, block, "mlp", names[1:]))
    return Table(tuple(units), tuple(removals), num_blocks, 5.0 + 2 * num_blocks, 100)


def _removal(draw: np.random.Generator, block: int, part: str, names: list[str]) -> Removal:
    extra = {"block": 2.0, "attention": 1.0, "mlp": 0.5}[part]
    return Removal(block, part, tuple(names), extra, 4, 0.5 + float(draw.random()))  # type: ignore[arg-type]


def brute_force(table: Table, limit: Limit) -> Selection | None:
    """Every selection there is, written without the solver's constraints."""
    best: Selection | None = None
    by_block = [
        [None, *(r for r in table.removals if r.block == block)]
        for block in range(table.num_blocks)
    ]
    for chosen in product(*by_block):
        gone = [removal for removal in chosen if removal is not None]
        removed = {name for removal in gone for name in removal.units}
        left = [unit for unit in table.units if unit.name not in removed]
        for forms in product(*([_allowed(unit, limit) for unit in left] or [[]])) if left else [()]:
            try:
                found = select(table, {u.name: f for u, f in zip(left, forms, strict=True)}, gone)
            except SecateurError:  # no block would be left
                continue
            taken = found.num_bytes if limit.num_bytes is not None else found.milliseconds
            if taken <= limit.value + 1e-9 and (best is None or found.loss < best.loss):
                best = found
    return best


def _allowed(unit: Unit, limit: Limit) -> list[str]:
    dense = limit.of(unit.choices[0])
    return [
        choice.form
        for choice in unit.choices
        if choice.form == "dense" or limit.of(choice) <= 0.95 * dense
    ]
