"""Items to choose by and items to report on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from secateur.errors import SecateurError
from secateur.seeds import require_seed


@dataclass(frozen=True)
class Split:
    """Numbers of items, ascending; none is in both."""

    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_items(units: Sequence[int], validation_fraction: float, seed: int) -> Split:
    """Deal whole units at random.

    Args:
        units: of each item; items of one unit go to the same side.
        validation_fraction: of the units, above 0 and below 1; each side gets at least one.
        seed: decides who goes where.

    Raises:
        SecateurError: fewer than two units, or a fraction or seed out of range.
    """
    check_validation_fraction(validation_fraction)
    require_seed(seed)
    distinct = sorted(set(units))
    if len(distinct) < 2:
        raise SecateurError(f"expected at least 2 items to split, but got {len(distinct)}")
    wanted = round(validation_fraction * len(distinct))
    number = min(max(wanted, 1), len(distinct) - 1)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    chosen = {distinct[index] for index in order[:number].tolist()}
    validation = tuple(item for item, unit in enumerate(units) if unit in chosen)
    test = tuple(item for item, unit in enumerate(units) if unit not in chosen)
    return Split(validation, test)


def check_validation_fraction(validation_fraction: float) -> None:
    """Refuse a fraction that leaves one side empty."""
    if not 0.0 < validation_fraction < 1.0:
        raise SecateurError(
            f"expected a validation fraction above 0 and below 1, but got {validation_fraction}"
        )
