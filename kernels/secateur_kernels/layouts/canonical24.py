"""Canonical 2:4: what a checkpoint holds, and what can be sliced for tensor parallelism."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.kind import WeightKind, kind_of
from secateur_kernels.layouts.pattern import (
    PADDING_NIBBLE,
    check_nibbles,
    nibbles_of,
    pairs_of,
    scatter_pairs,
    two_of_four,
)

# Two groups of four columns share one byte of indices.
COLUMNS_PER_BYTE = 8


@dataclass(frozen=True, eq=False)
class Canonical24:
    """A weight [N, K] with two of every four columns kept, in plain row-major order.

    9/16 of the dense bytes. Nothing is swizzled: rows can be cut anywhere, columns at multiples
    of 8.
    """

    values: Tensor
    """bf16 or fp16 [N, K / 2], contiguous: the kept weights of each group, lower column first."""
    indices: Tensor
    """uint8 [N, ceil(K / 8)], contiguous: two groups a byte, the earlier one in the low nibble. A
    nibble is the first kept column plus four times the second. Where K / 4 is odd, the last
    nibble of a row is that of columns 0 and 1."""

    def __post_init__(self) -> None:
        self.validate()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the logical weight."""
        return self.values.shape[0], 2 * self.values.shape[1]

    @property
    def kind(self) -> WeightKind:
        """What the values are."""
        return kind_of(self.values.dtype)

    @property
    def num_bytes(self) -> int:
        """Of values and indices."""
        return self.values.nbytes + self.indices.nbytes

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.values.device

    def validate(self) -> None:
        """Check types, sizes, memory order and every index pair.

        Raises:
            SecateurError: what was expected and what came.
        """
        kind_of(self.values.dtype)
        if self.values.ndim != 2 or self.values.shape[1] % 2:
            raise SecateurError(
                f"expected values [N, K / 2] with K divisible by 4, got {list(self.values.shape)}"
            )
        rows, columns = self.shape
        expected = [rows, -(-columns // COLUMNS_PER_BYTE)]
        if self.indices.dtype != torch.uint8 or list(self.indices.shape) != expected:
            raise SecateurError(
                f"expected indices uint8 {expected} for values {list(self.values.shape)}, "
                f"got {self.indices.dtype} {list(self.indices.shape)}"
            )
        if self.values.device != self.indices.device:
            raise SecateurError(
                f"expected values and indices on one device, got {self.values.device} and "
                f"{self.indices.device}"
            )
        if not (self.values.is_contiguous() and self.indices.is_contiguous()):
            raise SecateurError("expected values and indices to be contiguous")
        check_nibbles(self._nibbles(with_padding=True))

    @classmethod
    def from_dense(cls, weight: Tensor, keep_mask: Tensor | None = None) -> "Canonical24":
        """Pack a weight.

        Args:
            weight: bf16 or fp16 [N, K], K divisible by 4, any strides.
            keep_mask: bool [N, K], True = keep, at most two of four. Without it, whatever is not
                zero is kept. Weights that are not kept count as zero.

        Raises:
            SecateurError: wrong type or shape, or more than two of four are kept.
        """
        kind_of(weight.dtype)
        if weight.ndim != 2 or weight.shape[1] % 4:
            raise SecateurError(
                f"expected a weight [N, K] with K divisible by 4, got {list(weight.shape)}"
            )
        if keep_mask is None:
            keep_mask = weight != 0
        elif keep_mask.shape != weight.shape or keep_mask.dtype != torch.bool:
            raise SecateurError(
                f"expected keep_mask bool {list(weight.shape)} as the weight, "
                f"got {keep_mask.dtype} {list(keep_mask.shape)}"
            )
        pairs = two_of_four(keep_mask.contiguous())
        # Zero by mask and not by product: what is dropped may be NaN, Inf or -0.0.
        kept = weight.contiguous().masked_fill(~keep_mask, 0.0)
        rows, columns = weight.shape
        # As integers: torch's gather and scatter on a CPU rewrite the bits of NaN.
        groups = kept.view(torch.int16).view(rows, columns // 4, 4)
        values = groups.gather(2, pairs).view(rows, columns // 2).view(weight.dtype)
        return cls(values.contiguous(), _packed(nibbles_of(pairs)))

    def to_dense(self) -> Tensor:
        """The weight [N, K]: kept values bit for bit, +0.0 elsewhere."""
        rows, columns = self.shape
        pairs = pairs_of(self._nibbles())
        bits = self.values.view(torch.int16).view(rows, columns // 4, 2)
        return scatter_pairs(bits, pairs).view(self.values.dtype)

    def keep_mask(self) -> Tensor:
        """bool [N, K] with exactly two of four True, fillers included."""
        ones = torch.ones_like(self.values, dtype=torch.bool)
        rows, columns = self.shape
        return scatter_pairs(ones.view(rows, columns // 4, 2), pairs_of(self._nibbles()))

    def nibbles(self) -> Tensor:
        """uint8 [N, K / 4], one index pair a group."""
        return self._nibbles()

    def _nibbles(self, with_padding: bool = False) -> Tensor:
        both = torch.stack([self.indices & 15, self.indices >> 4], dim=2).flatten(1)
        return both if with_padding else both[:, : self.shape[1] // 4]

    def slice_rows(self, start: int, stop: int) -> "Canonical24":
        """Rows `start` to `stop`: output features of a tensor-parallel shard.

        Raises:
            SecateurError: the range is not within the weight.
        """
        self._check_range("rows", start, stop, self.shape[0])
        return Canonical24(
            self.values[start:stop].contiguous(), self.indices[start:stop].contiguous()
        )

    def slice_columns(self, start: int, stop: int) -> "Canonical24":
        """Columns `start` to `stop`: input features of a tensor-parallel shard.

        Raises:
            SecateurError: the range is not within the weight, or not at multiples of 8 (the end
                of the weight excepted).
        """
        columns = self.shape[1]
        self._check_range("columns", start, stop, columns)
        if start % COLUMNS_PER_BYTE or (stop % COLUMNS_PER_BYTE and stop != columns):
            raise SecateurError(
                f"expected column bounds at multiples of {COLUMNS_PER_BYTE} (two groups share a "
                f"byte of indices), got {start} to {stop} of {columns}"
            )
        first, last = start // COLUMNS_PER_BYTE, -(-stop // COLUMNS_PER_BYTE)
        return Canonical24(
            self.values[:, start // 2 : stop // 2].contiguous(),
            self.indices[:, first:last].contiguous(),
        )

    @staticmethod
    def _check_range(what: str, start: int, stop: int, size: int) -> None:
        if not 0 <= start <= stop <= size:
            raise SecateurError(f"expected {what} within 0 to {size}, got {start} to {stop}")

    @staticmethod
    def concatenate_rows(parts: Sequence["Canonical24"]) -> "Canonical24":
        """Stack weights of equal K, as for fused q/k/v.

        Raises:
            SecateurError: none are given, or they differ in K or dtype.
        """
        if not parts:
            raise SecateurError("expected at least one weight to concatenate")
        if len({(part.shape[1], part.values.dtype) for part in parts}) > 1:
            found = [(part.shape, part.values.dtype) for part in parts]
            raise SecateurError(f"expected weights of one K and dtype, got {found}")
        return Canonical24(
            torch.cat([part.values for part in parts]),
            torch.cat([part.indices for part in parts]),
        )

    def to(self, device: torch.device | str) -> "Canonical24":
        """The same weight on another device."""
        return replace(self, values=self.values.to(device), indices=self.indices.to(device))


def _packed(nibbles: Tensor) -> Tensor:
    """uint8 [N, ceil(groups / 2)] from nibbles uint8 [N, groups]."""
    if nibbles.shape[1] % 2:
        filler = nibbles.new_full((len(nibbles), 1), PADDING_NIBBLE)
        nibbles = torch.cat([nibbles, filler], dim=1)
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).contiguous()
