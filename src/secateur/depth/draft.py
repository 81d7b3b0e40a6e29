"""What is about to change in a configuration, collected before anything changes."""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

from secateur.depth.rules import Fields


@dataclass
class Draft:
    """What is to change in one configuration; nothing is changed yet."""

    fields: Fields
    """As they are."""
    kept: tuple[int, ...]
    """Old indices of the blocks that stay, ascending."""
    num_blocks: int
    """Before."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Field -> new value; the number of blocks comes first."""
    warnings: list[str] = field(default_factory=list)

    @property
    def new_index(self) -> dict[int, int]:
        """Old index of a kept block -> its new index."""
        return {old: new for new, old in enumerate(self.kept)}

    @property
    def new_fields(self) -> dict[str, Any]:
        """The fields as they will be."""
        return {**self.fields, **self.changes}

    def kept_below(self, bound: int) -> int:
        """How many kept blocks have an old index below `bound`."""
        return sum(index < bound for index in self.kept)


def is_int(value: Any) -> TypeGuard[int]:
    """Whether it is a number that counts something: True and False do not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether it is a list or tuple."""
    return isinstance(value, (list, tuple))
