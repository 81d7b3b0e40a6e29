"""A packed weight as an op receives it: plain arguments, checked without reading the bytes."""

from typing import NamedTuple

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.fragment24 import Fragment24, check_data
from secateur_kernels.layouts.require import require_layout
from secateur_kernels.linear_arguments import check_device


class Packed24(NamedTuple):
    """The fields of `Fragment24` in the order of every op's schema.

    Index pairs were checked when the value was made; doing so at each call would read the weight
    twice.
    """

    data: Tensor
    rows: int
    columns: int
    row_order: str
    value_dtype: torch.dtype

    @classmethod
    def of(cls, weight: Fragment24) -> "Packed24":
        """The fields of a validated weight.

        Raises:
            SecateurError: it has another layout.
        """
        require_layout(weight, Fragment24)
        return cls(weight.data, *weight.shape, weight.row_order, weight.kind.value_dtype)

    @property
    def gate_up(self) -> bool:
        """Whether gate and up rows are interleaved in eights."""
        return self.row_order == "gate_up"


SCHEMA = "Tensor data, int rows, int columns, str row_order, ScalarType value_dtype"


def check_packed(weight: Packed24, x: Tensor, activation: str, backend: str) -> None:
    """Raise SecateurError unless packed bytes, x and activation fit each other."""
    check_data(weight.data, (weight.rows, weight.columns), weight.row_order)
    check_device(x, weight=weight.data)
    widened = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    if x.dtype != weight.value_dtype and not (widened and backend in ("auto", "reference")):
        raise SecateurError(
            f"expected x of the weight's dtype {weight.value_dtype}, got {x.dtype} "
            "(the reference backend on a CPU takes fp32 and fp64 as well)"
        )
    if activation == "silu_and_mul" and not weight.gate_up:
        raise SecateurError(
            "expected a weight packed with row order gate_up for silu_and_mul, "
            f"got row order {weight.row_order}"
        )
