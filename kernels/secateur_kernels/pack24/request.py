"""What packing is asked for, checked, and where its results go."""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.canonical24 import COLUMNS_PER_BYTE
from secateur_kernels.layouts.fragment24 import SUB_TILE_ROWS, UNIT, UNIT_BYTES, RowOrder
from secateur_kernels.layouts.kind import kind_of

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class Packed(NamedTuple):
    """The tensors that `secateur::pack24` returns; empty, of shape [0], where not asked for."""

    mask: Tensor
    """bool [N, K]."""
    values: Tensor
    """[N, K / 2], as `Canonical24.values`."""
    indices: Tensor
    """uint8 [N, ceil(K / 8)], as `Canonical24.indices`."""
    data: Tensor
    """uint8 [padded N / 64, padded K / 64, 4608], as `Fragment24.data`."""


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of `secateur::pack24`, as in its schema."""

    weight: Tensor
    input_norm: Tensor | None
    score: Tensor | None
    keep_mask: Tensor | None
    row_order: str
    want_mask: bool
    want_canonical: bool
    want_fragment: bool

    @property
    def gate_up(self) -> bool:
        """Whether gate and up rows are interleaved in eights."""
        return self.want_fragment and self.row_order == "gate_up"

    def check(self) -> None:
        """Check everything that can be seen without reading a tensor.

        Raises:
            SecateurError: what was expected and what came.
        """
        self._check_weight()
        given = [self.score is not None, self.keep_mask is not None, self.input_norm is not None]
        if sum(given) > 1:
            raise SecateurError(
                "expected at most one of input_norm, score and keep_mask, got "
                + " and ".join(
                    name
                    for name in ("input_norm", "score", "keep_mask")
                    if getattr(self, name) is not None
                )
            )
        shape = list(self.weight.shape)
        self._check_tensor("input_norm", (torch.float32,), shape[1:])
        self._check_tensor("score", FLOATS, shape)
        self._check_tensor("keep_mask", (torch.bool,), shape)

    def _check_weight(self) -> None:
        weight = self.weight
        if weight.ndim != 2 or weight.shape[1] % 4:
            raise SecateurError(
                f"expected a weight [N, K] with K divisible by 4, got {list(weight.shape)}"
            )
        if self.want_canonical or self.want_fragment:
            kind_of(weight.dtype)
        elif weight.dtype not in FLOATS:
            raise SecateurError(f"expected weights of dtype {_names(FLOATS)}, got {weight.dtype}")
        if self.row_order not in get_args(RowOrder):
            raise SecateurError(f"expected row order natural or gate_up, got {self.row_order!r}")
        if self.gate_up and weight.shape[0] % SUB_TILE_ROWS:
            raise SecateurError(
                "expected as many up rows as gate rows, in eights (N divisible by 16), for row "
                f"order gate_up, got N = {weight.shape[0]}"
            )

    def _check_tensor(self, name: str, dtypes: tuple[torch.dtype, ...], shape: list[int]) -> None:
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            return
        if tensor.dtype not in dtypes or list(tensor.shape) != shape:
            raise SecateurError(
                f"expected {name} {_names(dtypes)} {shape} for a weight "
                f"{list(self.weight.shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != self.weight.device:
            raise SecateurError(
                f"expected {name} on {self.weight.device} as the weight, got {tensor.device}"
            )

    def allocate(self) -> Packed:
        """Tensors for the results, not filled."""
        rows, columns = self.weight.shape
        panels, steps = -(-rows // UNIT), -(-columns // UNIT)
        new = self.weight.new_empty
        index_shape = (rows, -(-columns // COLUMNS_PER_BYTE))
        return Packed(
            new((rows, columns) if self.want_mask else 0, dtype=torch.bool),
            new((rows, columns // 2) if self.want_canonical else 0),
            new(index_shape if self.want_canonical else 0, dtype=torch.uint8),
            new((panels, steps, UNIT_BYTES) if self.want_fragment else 0, dtype=torch.uint8),
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)
