"""A matrix as two thin factors, and what that costs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError


@dataclass(frozen=True, eq=False)
class Factors:
    """weight [N, K] ~ up @ down."""

    up: Tensor
    """[N, r], floating."""
    down: Tensor
    """[r, K], dtype and device of `up`."""

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise SecateurError(
                "expected factors up [N, r] and down [r, K], "
                f"got {list(self.up.shape)} and {list(self.down.shape)}"
            )
        if self.rank < 1:
            raise SecateurError("expected a rank of at least 1, got 0")
        if self.up.dtype != self.down.dtype or self.up.device != self.down.device:
            raise SecateurError(
                "expected up and down of one dtype on one device, got "
                f"{self.up.dtype} on {self.up.device} and {self.down.dtype} on {self.down.device}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the logical weight."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """Columns of `up` and rows of `down`."""
        return self.up.shape[1]

    @property
    def num_parameters(self) -> int:
        """Values stored: r * (N + K)."""
        return parameters_of(self.rank, *self.shape)

    def dense(self) -> Tensor:
        """The product [N, K], in the factors' dtype."""
        return self.up @ self.down

    def to(self, dtype: torch.dtype) -> "Factors":
        """The same factors, rounded to another dtype."""
        return replace(self, up=self.up.to(dtype), down=self.down.to(dtype))


def parameters_of(rank: int, rows: int, columns: int) -> int:
    """Values that factors of this rank store for a weight [rows, columns]."""
    return rank * (rows + columns)


def break_even_rank(rows: int, columns: int) -> int:
    """The largest rank at which factors store no more than the dense weight [rows, columns]."""
    return rows * columns // (rows + columns)


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Check that a weight [rows, columns] can be cut to this rank.

    A rank above the break-even is allowed: see `storage_complaint`.

    Raises:
        SecateurError: the rank is below 1 or above min(rows, columns).
    """
    if not 1 <= rank <= min(rows, columns):
        raise SecateurError(
            f"expected a rank from 1 to {min(rows, columns)} for a weight [{rows}, {columns}], "
            f"got {rank}"
        )


def storage_complaint(rank: int, rows: int, columns: int) -> str | None:
    """What to tell a user whose factors would be larger than the dense weight.

    Returns:
        A sentence with the figures, for a warning or an error; None where factors pay.
    """
    stored, dense = parameters_of(rank, rows, columns), rows * columns
    if stored <= dense:
        return None
    return (
        f"rank {rank} of a weight [{rows}, {columns}] stores {stored:,} values, more than the "
        f"{dense:,} of the dense weight; the break-even rank is {break_even_rank(rows, columns)}"
    )
