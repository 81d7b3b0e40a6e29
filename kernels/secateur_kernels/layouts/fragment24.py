"""Fragment-order 2:4: the bytes in the order in which sparse matrix instructions want them.

```
[row panel of 64 rows][step of 64 columns] -> unit of 4608 bytes
unit     = 4 sub-tiles of 16 rows x 64 columns
sub-tile = 2 fragments of 16 x 32 (512 bytes of values each), then 32 metadata words (128 bytes)
fragment = for each of 32 lanes 16 bytes: four registers of two values
```

Lane 4 * q + t of a warp (q in 0..7, t in 0..3) holds, of a 16 x 16 tile of kept values (32 columns
before pruning), the values of rows q and q + 8 at kept columns 2t, 2t + 1 and 8 + 2t, 8 + 2t + 1:
registers (q, low), (q + 8, low), (q, high), (q + 8, high). Metadata word of lane 4 * q + 2 * s + h:
nibbles of row q (low half) and row q + 8 (high half), for the 16 columns h of fragment s: that is
selector s of the instruction.

One copy serves mma.sp m16n8k32 and, a warp a sub-tile, wgmma.sp m64nNk32. N and K are padded to 64
with zeros at columns 0 and 1: kernels have no tail to treat, but must zero-fill x beyond K.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.canonical24 import Canonical24
from secateur_kernels.layouts.kind import WeightKind
from secateur_kernels.layouts.pattern import PADDING_NIBBLE, check_nibbles

RowOrder = Literal["natural", "gate_up"]

VERSION = 1
UNIT = 64
SUB_TILE_ROWS = 16
VALUE_BYTES = 1024
METADATA_BYTES = 128
SUB_TILE_BYTES = VALUE_BYTES + METADATA_BYTES
UNIT_BYTES = 4 * SUB_TILE_BYTES


@dataclass(frozen=True, eq=False)
class Fragment24:
    """A weight [N, K] with two of every four columns kept, in fragment order. Never slice it."""

    data: Tensor
    """uint8 [padded N / 64, padded K / 64, 4608], contiguous."""
    shape: tuple[int, int]
    """(N, K) of the logical weight."""
    kind: WeightKind
    row_order: RowOrder = "natural"
    """`gate_up`: the rows are [gate; up], and each 16-row sub-tile holds 8 gate rows and then the
    8 up rows of the same features, so that one thread has both."""
    version: int = VERSION

    def __post_init__(self) -> None:
        self.validate()

    @property
    def padded_shape(self) -> tuple[int, int]:
        """(N, K), each rounded up to 64."""
        rows, columns = self.shape
        return _padded(rows), _padded(columns)

    @property
    def num_bytes(self) -> int:
        """1.125 a weight, padding included."""
        return self.data.nbytes

    def validate(self) -> None:
        """Check version, sizes, memory order and every index pair.

        Raises:
            SecateurError: what was expected and what came.
        """
        if self.version != VERSION:
            raise SecateurError(f"expected layout version {VERSION}, got {self.version}")
        check_data(self.data, self.shape, self.row_order)
        check_nibbles(_nibbles(self.data))

    @classmethod
    def from_dense(
        cls, weight: Tensor, keep_mask: Tensor | None = None, row_order: RowOrder = "natural"
    ) -> "Fragment24":
        """Pack a weight; arguments and errors as `Canonical24.from_dense`."""
        return cls.from_canonical(Canonical24.from_dense(weight, keep_mask), row_order)

    @classmethod
    def from_canonical(cls, weight: Canonical24, row_order: RowOrder = "natural") -> "Fragment24":
        """Reorder a canonical weight for kernels, without a dense copy.

        Raises:
            SecateurError: the row order does not fit the number of rows.
        """
        rows, columns = weight.shape
        _check_row_order(row_order, rows)
        more_rows, more_columns = _padded(rows) - rows, _padded(columns) - columns
        values = F.pad(_ordered(weight.values, row_order), (0, more_columns // 2, 0, more_rows))
        nibbles = F.pad(
            _ordered(weight.nibbles(), row_order),
            (0, more_columns // 4, 0, more_rows),
            value=PADDING_NIBBLE,
        )
        sub_tiles = torch.cat([_value_bytes(values), _metadata_bytes(nibbles)], dim=3)
        return cls(sub_tiles.flatten(2).contiguous(), weight.shape, weight.kind, row_order)

    def to_canonical(self) -> Canonical24:
        """Back to the order that can be sliced, bit for bit."""
        value_dtype = self.kind.value_dtype
        return Canonical24(*canonical_order(self.data, self.shape, value_dtype, self.row_order))

    def to_dense(self) -> Tensor:
        """The weight [N, K]: kept values bit for bit, +0.0 elsewhere."""
        return self.to_canonical().to_dense()

    def to(self, device: torch.device | str) -> "Fragment24":
        """The same weight on another device."""
        return replace(self, data=self.data.to(device))


def check_data(data: Tensor, shape: tuple[int, int], row_order: str) -> None:
    """Check packed bytes but for their index pairs: cheap enough for every call.

    Raises:
        SecateurError: what was expected and what came.
    """
    rows, columns = shape
    if rows < 0 or columns < 0 or columns % 4:
        raise SecateurError(f"expected a shape (N, K) with K divisible by 4, got {shape}")
    expected = [_padded(rows) // UNIT, _padded(columns) // UNIT, UNIT_BYTES]
    if data.dtype != torch.uint8 or list(data.shape) != expected:
        raise SecateurError(
            f"expected data uint8 {expected} for a weight {[rows, columns]}, "
            f"got {data.dtype} {list(data.shape)}"
        )
    if not data.is_contiguous():
        raise SecateurError("expected data to be contiguous")
    _check_row_order(row_order, rows)


def _check_row_order(row_order: str, rows: int) -> None:
    if row_order not in get_args(RowOrder):
        raise SecateurError(f"expected row order natural or gate_up, got {row_order!r}")
    if row_order == "gate_up" and rows % SUB_TILE_ROWS:
        raise SecateurError(
            "expected as many up rows as gate rows, in eights (N divisible by 16), for row "
            f"order gate_up, got N = {rows}"
        )


def plain_order(
    data: Tensor, shape: tuple[int, int], value_dtype: torch.dtype, row_order: str
) -> tuple[Tensor, Tensor]:
    """Packed bytes in row-major order, padding removed; index pairs are not checked.

    Returns:
        values [N, K / 2] of `value_dtype` and nibbles uint8 [N, K / 4].
    """
    rows, columns = shape
    values = _unordered(_values(data, value_dtype)[:rows, : columns // 2], row_order)
    return values, _unordered(_nibbles(data)[:rows, : columns // 4], row_order)


def canonical_order(
    data: Tensor, shape: tuple[int, int], value_dtype: torch.dtype, row_order: str
) -> tuple[Tensor, Tensor]:
    """Packed bytes as the fields of `Canonical24`; index pairs are not checked."""
    values, nibbles = plain_order(data, shape, value_dtype, row_order)
    if nibbles.shape[1] % 2:
        nibbles = F.pad(nibbles, (0, 1), value=PADDING_NIBBLE)
    indices = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return values.contiguous(), indices.contiguous()


def _sub_tiles(data: Tensor) -> Tensor:
    """uint8 [row panel, k64 step, sub-tile, 1152]."""
    panels, steps, _ = data.shape
    return data.view(panels, steps, 4, SUB_TILE_BYTES)


def _values(data: Tensor, value_dtype: torch.dtype) -> Tensor:
    """Kept values [padded N, padded K / 2] in plain order."""
    raw = _sub_tiles(data)[..., :VALUE_BYTES].contiguous().view(value_dtype)
    panels, steps = data.shape[:2]
    # panel, step, sub-tile, fragment, q, t, column half, row half, pair
    lanes = raw.view(panels, steps, 4, 2, 8, 4, 2, 2, 2)
    plain = lanes.permute(0, 2, 7, 4, 1, 3, 6, 5, 8)
    return plain.reshape(panels * UNIT, steps * UNIT // 2)


def _nibbles(data: Tensor) -> Tensor:
    """Index pairs uint8 [padded N, padded K / 4] in plain order."""
    words = _sub_tiles(data)[..., VALUE_BYTES:].contiguous().view(torch.int32)
    panels, steps = data.shape[:2]
    # panel, step, sub-tile, q, fragment and half -> eight nibbles a word: row half, then four
    lanes = words.view(panels, steps, 4, 8, 4, 1)
    shifts = 4 * torch.arange(8, device=words.device, dtype=torch.int32)
    spread = ((lanes >> shifts) & 15).to(torch.uint8).view(panels, steps, 4, 8, 4, 2, 4)
    plain = spread.permute(0, 2, 5, 3, 1, 4, 6)
    return plain.reshape(panels * UNIT, steps * UNIT // 4)


def _padded(size: int) -> int:
    return -(-size // UNIT) * UNIT


def _ordered(rows: Tensor, row_order: str) -> Tensor:
    """Plain rows into the order in which sub-tiles hold them."""
    if row_order == "natural":
        return rows
    eights = len(rows) // SUB_TILE_ROWS
    gate_and_up = rows.view(2, eights, SUB_TILE_ROWS // 2, rows.shape[1])
    return gate_and_up.transpose(0, 1).reshape(rows.shape)


def _unordered(rows: Tensor, row_order: str) -> Tensor:
    if row_order == "natural":
        return rows
    eights = len(rows) // SUB_TILE_ROWS
    tiles = rows.reshape(eights, 2, SUB_TILE_ROWS // 2, rows.shape[1])
    return tiles.transpose(0, 1).reshape(rows.shape)


def _value_bytes(values: Tensor) -> Tensor:
    """uint8 [row panel, k64 step, sub-tile, 1024] from kept values [padded N, padded K / 2]."""
    panels, steps = values.shape[0] // UNIT, values.shape[1] // (UNIT // 2)
    # panel, sub-tile, row half, q, step, fragment, column half, t, pair
    plain = values.reshape(panels, 4, 2, 8, steps, 2, 2, 4, 2)
    lanes = plain.permute(0, 4, 1, 5, 3, 7, 6, 2, 8).contiguous()
    return lanes.view(torch.uint8).view(panels, steps, 4, VALUE_BYTES)


def _metadata_bytes(nibbles: Tensor) -> Tensor:
    """uint8 [row panel, k64 step, sub-tile, 128] from nibbles [padded N, padded K / 4]."""
    panels, steps = nibbles.shape[0] // UNIT, nibbles.shape[1] // (UNIT // 4)
    # panel, sub-tile, row half, q, step, fragment and half, nibble
    plain = nibbles.long().reshape(panels, 4, 2, 8, steps, 4, 4)
    shifts = 4 * torch.arange(8, device=nibbles.device).view(2, 1, 1, 1, 4)
    words = (plain << shifts).sum(dim=(2, 6))
    # Sums stay below 2**32; the cast keeps their low 32 bits.
    lanes = words.permute(0, 3, 1, 2, 4).to(torch.int32).contiguous()
    return lanes.view(torch.uint8).view(panels, steps, 4, METADATA_BYTES)
