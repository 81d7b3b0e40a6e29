"""A pruned weight in the forms that were asked for."""

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from secateur_kernels.layouts.canonical24 import Canonical24
from secateur_kernels.layouts.fragment24 import Fragment24, RowOrder
from secateur_kernels.layouts.kind import kind_of
from secateur_kernels.pack24.request import Packed, Request

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Pruned24:
    """The same two of every four columns in up to three forms; None where not asked for."""

    keep_mask: Tensor | None
    """bool [N, K], True = keep: exactly two of four, also where a given mask kept fewer."""
    canonical: Canonical24 | None
    fragment: Fragment24 | None

    @classmethod
    def of(cls, packed: Packed, request: Request) -> "Pruned24":
        """The results of the op as values."""
        order: RowOrder = "gate_up" if request.gate_up else "natural"
        rows, columns = request.weight.shape
        canonical = fragment = None
        if request.want_canonical:
            canonical = _legal(Canonical24, values=packed.values, indices=packed.indices)
        if request.want_fragment:
            fragment = _legal(
                Fragment24,
                data=packed.data,
                shape=(rows, columns),
                kind=kind_of(request.weight.dtype),
                row_order=order,
            )
        return cls(packed.mask if request.want_mask else None, canonical, fragment)


def _legal(value_class: type[Value], **fields: Any) -> Value:
    """A frozen value without its validation.

    What was just packed is legal; validating it would read all of it again, in many passes, and
    wait for the device. Tests validate what every backend writes.
    """
    value = object.__new__(value_class)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return value
