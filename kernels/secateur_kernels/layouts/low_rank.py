"""A weight as two thin factors; several such weights side by side for one launch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import wide_dtype

# Kernels work on ranks in steps of a matrix instruction.
RANK_STEP = 16


def padded_rank(rank: int) -> int:
    """The rank that factors of `rank` are stored with: the next multiple of `RANK_STEP`."""
    return -(-rank // RANK_STEP) * RANK_STEP


@dataclass(frozen=True, eq=False)
class LowRank:
    """A weight [N, K] = up @ down, or G of them stacked along N with equal (padded) ranks.

    With G groups the weight is that of fused q/k/v or gate/up: rows of group g use rows
    g * r to (g + 1) * r of `down`, so that the zeros of a block-diagonal `up` are not stored.
    """

    down: Tensor
    """[G * r, K], contiguous."""
    up: Tensor
    """[N, r], contiguous, dtype and device of `down`."""
    group_rows: tuple[int, ...]
    """Rows of each group; they add up to N."""

    def __post_init__(self) -> None:
        self.validate()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the logical weight."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """r of each group, padding included."""
        return self.up.shape[1]

    @property
    def num_bytes(self) -> int:
        """Of both factors."""
        return self.down.nbytes + self.up.nbytes

    def validate(self) -> None:
        """Check shapes, types and memory order.

        Raises:
            SecateurError: what was expected and what came.
        """
        check_factors(self.down, self.up, self.group_rows)
        if not (self.down.is_contiguous() and self.up.is_contiguous()):
            raise SecateurError("expected down and up to be contiguous")

    @classmethod
    def from_factors(cls, up: Tensor, down: Tensor) -> "LowRank":
        """One group from factors [N, r] and [r, K]; the rank is padded to 16 with zeros.

        Raises:
            SecateurError: the factors do not fit each other.
        """
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise SecateurError(
                f"expected factors up [N, r] and down [r, K], "
                f"got {list(up.shape)} and {list(down.shape)}"
            )
        return cls(down.contiguous(), up.contiguous(), (up.shape[0],)).padded(
            padded_rank(up.shape[1])
        )

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int) -> "LowRank":
        """The best approximation of a weight by rank (Eckart and Young), one group.

        Singular values are computed in float64 and shared evenly by the factors.

        Args:
            weight: floating [N, K], finite.
            rank: 1 to min(N, K); padded to 16 with zeros.

        Raises:
            SecateurError: the rank is out of range.
        """
        if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
            raise SecateurError(
                f"expected a weight [N, K] and a rank of 1 to min(N, K), "
                f"got {list(weight.shape)} and {rank}"
            )
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        root = values[:rank].sqrt()
        up, down = left[:, :rank] * root, root[:, None] * right[:rank]
        return cls.from_factors(up.to(weight.dtype), down.to(weight.dtype))

    def padded(self, rank: int) -> "LowRank":
        """The same weight with the rank of every group raised to `rank` by zeros.

        Raises:
            SecateurError: `rank` is below the present one.
        """
        more = rank - self.rank
        if more < 0:
            raise SecateurError(f"expected a rank of at least {self.rank}, got {rank}")
        if more == 0:
            return self
        groups = len(self.group_rows)
        down = self.down.view(groups, self.rank, -1)
        return LowRank(
            F.pad(down, (0, 0, 0, more)).flatten(0, 1).contiguous(),
            F.pad(self.up, (0, more)).contiguous(),
            self.group_rows,
        )

    @staticmethod
    def stack(parts: Sequence["LowRank"]) -> "LowRank":
        """Weights of equal K, one below the other, each with its own factors.

        Raises:
            SecateurError: none are given, or they differ in K or dtype.
        """
        if not parts:
            raise SecateurError("expected at least one weight to stack")
        if len({(part.shape[1], part.up.dtype) for part in parts}) > 1:
            found = [(part.shape, part.up.dtype) for part in parts]
            raise SecateurError(f"expected weights of one K and dtype, got {found}")
        rank = max(part.rank for part in parts)
        even = [part.padded(rank) for part in parts]
        return LowRank(
            torch.cat([part.down for part in even]),
            torch.cat([part.up for part in even]),
            tuple(rows for part in even for rows in part.group_rows),
        )

    def slice_rows(self, start: int, stop: int) -> "LowRank":
        """Rows `start` to `stop`: the shard of a column-parallel linear keeps `down` whole.

        Raises:
            SecateurError: the range is not within the weight, or there are several groups (slice
                each, then stack).
        """
        self._check_sliceable("rows", start, stop, self.shape[0])
        return LowRank(self.down, self.up[start:stop].contiguous(), (stop - start,))

    def slice_columns(self, start: int, stop: int) -> "LowRank":
        """Columns `start` to `stop`: the shard of a row-parallel linear keeps `up` whole.

        Partial results may be added before or after `up`: before it, r numbers a token travel.

        Raises:
            SecateurError: as `slice_rows`.
        """
        self._check_sliceable("columns", start, stop, self.shape[1])
        return LowRank(self.down[:, start:stop].contiguous(), self.up, self.group_rows)

    def _check_sliceable(self, what: str, start: int, stop: int, size: int) -> None:
        if len(self.group_rows) != 1:
            raise SecateurError(
                f"expected one group to slice, got {len(self.group_rows)}: slice, then stack"
            )
        if not 0 <= start <= stop <= size:
            raise SecateurError(f"expected {what} within 0 to {size}, got {start} to {stop}")

    def to_dense(self) -> Tensor:
        """The weight [N, K], multiplied in fp32 (fp64 for fp64) and rounded once."""
        wide = wide_dtype(self.up.dtype)
        downs = self.down.to(wide).view(len(self.group_rows), self.rank, -1)
        ups = torch.split(self.up.to(wide), list(self.group_rows))
        dense = torch.cat([up @ down for up, down in zip(ups, downs, strict=True)])
        return dense.to(self.up.dtype)

    def to(self, device: torch.device | str) -> "LowRank":
        """The same weight on another device."""
        return replace(self, down=self.down.to(device), up=self.up.to(device))


def check_factors(down: Tensor, up: Tensor, group_rows: Sequence[int]) -> None:
    """Raise SecateurError unless down [G * r, K], up [N, r] and the groups fit each other."""
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != len(group_rows) * up.shape[1]:
        raise SecateurError(
            f"expected down [{len(group_rows)} * r, K] and up [N, r], "
            f"got {list(down.shape)} and {list(up.shape)}"
        )
    if up.shape[1] < 1:
        raise SecateurError("expected a rank of at least 1, got 0")
    if any(rows < 0 for rows in group_rows) or sum(group_rows) != up.shape[0]:
        raise SecateurError(
            f"expected rows of groups that add up to {up.shape[0]}, got {list(group_rows)}"
        )
    if not down.dtype.is_floating_point or down.dtype != up.dtype or down.device != up.device:
        raise SecateurError(
            "expected down and up of one floating dtype on one device, "
            f"got {down.dtype} on {down.device} and {up.dtype} on {up.device}"
        )
