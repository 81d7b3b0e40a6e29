"""What a plan may choose from, and how carefully things are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from secateur.errors import SecateurError
from secateur.lowrank import break_even_rank
from secateur.modules.weight24 import PACKABLE_DTYPES
from secateur.recipe import ImportanceName
from secateur_kernels.layouts.low_rank import RANK_STEP

Method = Literal["dense", "2:4", "low-rank", "drop"]
METHODS: tuple[str, ...] = get_args(Method)

# Gradients' directions are means over these; more than 16 lose less (see bench/NOTES.md).
IMPORTANCE_SAMPLES = 64

# Of the rank at which factors store as much as the matrix.
DEFAULT_FRACTIONS = tuple(part / 12 for part in range(1, 12))


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is made."""

    methods: tuple[str, ...] | None = None
    """Some of dense, 2:4, low-rank and drop; dense is always one. None: all, but 2:4 on a GPU
    only, because no CPU runs it faster than dense."""
    rank_fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    """Ranks to offer, as parts of the break-even rank of each matrix; multiples of 16."""
    parts: bool = True
    """`drop` offers attention and MLP of a block by themselves, too, where the family allows."""
    rounds: int = 15
    """Timed turns."""
    trials: int = 16
    """Models to build in search of a better one, at most, for the plan and each single method."""
    damping: float = 0.01
    """Of Hessians, as the factor stage's."""
    importance: ImportanceName = "directions"
    """What an error of an output counts, as the factor stage's."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods or () if name not in METHODS]
        if unknown or self.methods == ():
            raise SecateurError(
                f"expected methods among {', '.join(METHODS)}, got "
                f"{', '.join(map(repr, unknown)) or 'none'}"
            )
        if not self.rank_fractions or not all(0 < part < 1 for part in self.rank_fractions):
            raise SecateurError(
                "expected rank fractions above 0 and below 1, got "
                f"{', '.join(map(str, self.rank_fractions)) or 'none'}"
            )
        if self.importance not in get_args(ImportanceName):
            raise SecateurError(
                f"expected importance one of {', '.join(get_args(ImportanceName))}, "
                f"got {self.importance!r}"
            )
        if self.trials < 0:
            raise SecateurError(f"expected at least 0 trials, got {self.trials}")
        if self.rounds < 1:
            raise SecateurError(f"expected at least 1 round, got {self.rounds}")

    def resolved_methods(self, device: torch.device) -> tuple[str, ...]:
        """The methods to offer on a device, dense first."""
        asked = METHODS if self.methods is None else self.methods
        left_out = {"2:4"} if self.methods is None and device.type != "cuda" else set()
        return tuple(name for name in METHODS if name == "dense" or name in {*asked} - left_out)


def offered_ranks(shape: tuple[int, int], fractions: Sequence[float]) -> tuple[int, ...]:
    """Ranks of factors that store less than the matrix [N, K], ascending multiples of 16."""
    most = break_even_rank(*shape)
    wanted = {round(part * most / RANK_STEP) * RANK_STEP for part in fractions}
    return tuple(sorted(rank for rank in wanted if RANK_STEP <= rank < min(most, *shape)))


def fits_sparse24(shape: tuple[int, int]) -> bool:
    """Whether the rows of a matrix [N, K] are whole groups of four, so that 2:4 can be offered."""
    return shape[1] % 4 == 0


def check_sparse24(methods: Sequence[str], dtype: torch.dtype) -> None:
    """Raise SecateurError if 2:4 is asked for in a dtype in which nothing runs it."""
    if "2:4" in methods and dtype not in PACKABLE_DTYPES:
        raise SecateurError(
            "expected a model in bfloat16 or float16 to offer 2:4, got "
            f"{str(dtype).removeprefix('torch.')}; leave 2:4 out of the methods"
        )
