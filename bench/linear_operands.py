"""One linear layer in every form that candidates read, in copies that overflow the caches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench import cusparselt
from bench.shapes import WeightShape
from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.timing import copies_to_rotate

SPARSE, LOW_RANK = "sparse24_linear", "low_rank_linear"


@dataclass(frozen=True)
class Operands:
    """Copies of one weight in each form, enough of each to overflow the caches."""

    op: str
    shape: WeightShape
    dense: tuple[Tensor, ...]
    """[N, K], the weight with its zeros, or the product of the factors, rounded."""
    packed: tuple[Fragment24, ...] = ()
    factors: tuple[LowRank, ...] = ()
    compressed: tuple[Tensor, ...] = ()
    """For cuSPARSELt."""

    @property
    def num_bytes(self) -> int:
        """Of the weight as our kernels read it."""
        weight = self.packed[0] if self.packed else self.factors[0]
        return weight.num_bytes

    def exact(self, x: Tensor) -> Tensor:
        """x @ weight.T in float64, [M, N]; by the factors where there are some."""
        if self.op == SPARSE:
            return _exact_product(x.double(), self.dense[0])
        factors = self.factors[0]
        return _exact_product(_exact_product(x.double(), factors.down), factors.up)


def make_operands(
    op: str,
    shape: WeightShape,
    dtype: torch.dtype,
    device: torch.device,
    with_competitors: bool = True,
) -> Operands:
    """Random weights whose results are of the size of x, so that chains neither fade nor grow."""
    torch.manual_seed(0)
    if op == LOW_RANK:
        return _low_rank_operands(shape, dtype, device)
    return _sparse_operands(shape, dtype, device, with_competitors)


def _sparse_operands(
    shape: WeightShape, dtype: torch.dtype, device: torch.device, with_competitors: bool
) -> Operands:
    weight = _random_24(shape.n, shape.k, dtype, device)
    packed = Fragment24.from_dense(weight)
    copies = copies_to_rotate(packed.num_bytes, device)
    compressed: tuple[Tensor, ...] = ()
    if with_competitors and cusparselt.why_not(device) is None:
        first = cusparselt.compress(weight)
        compressed = tuple(first.clone() for _ in range(copies_to_rotate(first.nbytes, device)))
    return Operands(
        SPARSE,
        shape,
        _clones(weight, device),
        packed=tuple(_copy_of(packed) for _ in range(copies)),
        compressed=compressed,
    )


def _low_rank_operands(shape: WeightShape, dtype: torch.dtype, device: torch.device) -> Operands:
    rank = shape.rank
    up = torch.empty(shape.n, rank, dtype=dtype, device=device).normal_(std=rank**-0.5)
    down = torch.empty(rank, shape.k, dtype=dtype, device=device).normal_(std=shape.k**-0.5)
    factors = LowRank.from_factors(up, down)
    copies = copies_to_rotate(factors.num_bytes, device)
    rotated = (
        replace(factors, down=factors.down.clone(), up=factors.up.clone()) for _ in range(copies)
    )
    dense = _clones(factors.to_dense(), device)
    return Operands(LOW_RANK, shape, dense, factors=tuple(rotated))


def _exact_product(x: Tensor, weight: Tensor, rows_at_once: int = 8192) -> Tensor:
    parts = weight.split(rows_at_once)
    return torch.cat([x @ part.double().T for part in parts], dim=1)


def _random_24(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal values, two random columns of every four kept."""
    pairs = torch.combinations(torch.arange(4, device=device), 2)
    kept = torch.zeros(6, 4, dtype=torch.bool, device=device).scatter_(1, pairs, True)
    mask = kept[torch.randint(6, (n, k // 4), device=device)].view(n, k)
    weight = torch.empty(n, k, dtype=dtype, device=device).normal_(std=(2 / k) ** 0.5)
    return weight.masked_fill_(~mask, 0.0)


def _clones(weight: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(weight.clone() for _ in range(copies_to_rotate(weight.nbytes, device)))


def _copy_of(packed: Fragment24) -> Fragment24:
    # Without validating every copy's index pairs again.
    copy = object.__new__(Fragment24)
    for name in ("shape", "kind", "row_order", "version"):
        object.__setattr__(copy, name, getattr(packed, name))
    object.__setattr__(copy, "data", packed.data.clone())
    return copy
