"""Every way to compute one linear layer, ready to be timed against each other."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import cusparselt
from bench.shapes import WeightShape
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.low_rank_linear import op as low_rank_op
from secateur_kernels.sparse24_linear import op as sparse24_op
from secateur_kernels.timing import copies_to_rotate

SPARSE, LOW_RANK = "sparse24_linear", "low_rank_linear"
OURS = {
    SPARSE: ("auto", "cuda", "triton", "unpack"),
    LOW_RANK: ("auto", "cuda", "triton"),
}
Step = Callable[[Tensor, int], Tensor]
"""x [M, K] and the index of the weight's copy to y [M, N]."""


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


@dataclass
class Candidates:
    """Steps by name, and what was chosen or failed."""

    steps: dict[str, Step] = field(default_factory=dict)
    isolated: dict[str, Callable[[int], object]] = field(default_factory=dict)
    """Calls that cannot be chained."""
    notes: dict[str, str] = field(default_factory=dict)


def make_operands(
    op: str, shape: WeightShape, dtype: torch.dtype, device: torch.device
) -> Operands:
    """Random weights whose results are of the size of x, so that chains neither fade nor grow."""
    torch.manual_seed(0)
    make = _sparse_operands if op == SPARSE else _low_rank_operands
    return make(shape, dtype, device)


def _sparse_operands(shape: WeightShape, dtype: torch.dtype, device: torch.device) -> Operands:
    weight = _random_24(shape.n, shape.k, dtype, device)
    packed = Fragment24.from_dense(weight)
    copies = copies_to_rotate(packed.num_bytes, device)
    compressed: tuple[Tensor, ...] = ()
    if cusparselt.why_not(device) is None:
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


def candidates_for(operands: Operands, x: Tensor, with_competitors: bool = True) -> Candidates:
    """All that can run here, each tried once; what fails is noted with its reason.

    Args:
        operands: of the layer.
        x: [M, K].
        with_competitors: cuSPARSELt as well.
    """
    found = Candidates(_torch_steps(operands, x.device))
    for backend in OURS[operands.op]:
        found.steps[f"ours {backend}"] = _our_step(operands, backend)
    found.notes["ours auto"] = _explained(operands, x)
    if with_competitors and operands.compressed:
        calls, notes = cusparselt.candidates(operands.compressed, x)
        found.isolated |= calls
        found.notes |= notes
    elif operands.op == SPARSE:
        found.notes["cusparselt"] = cusparselt.why_not(x.device) or "not asked for"
    _drop_what_fails(found, x)
    return found


def _torch_steps(operands: Operands, device: torch.device) -> dict[str, Step]:
    """The dense product, and for factors two products, by each of torch's libraries."""
    dense, factors = operands.dense, operands.factors

    def one(x: Tensor, index: int) -> Tensor:
        return F.linear(x, dense[index % len(dense)])

    def two(x: Tensor, index: int) -> Tensor:
        part = factors[index % len(factors)]
        return F.linear(F.linear(x, part.down), part.up)

    steps: dict[str, Step] = {"dense": one}
    if factors:
        steps["two products"] = two
    if device.type != "cuda":
        return steps
    return {
        f"{name} {library}": _by_library(step, library)
        for name, step in steps.items()
        for library in ("cublas", "cublaslt")
    }


def _by_library(step: Step, library: str) -> Step:
    def chosen(x: Tensor, index: int) -> Tensor:
        # What is captured is what this chose; the setting itself costs nothing on the device.
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library(library)
        try:
            return step(x, index)
        finally:
            torch.backends.cuda.preferred_blas_library(before)

    return chosen


def _our_step(operands: Operands, backend: str) -> Step:
    named: Any = backend
    if operands.op == SPARSE:
        packed = operands.packed
        return lambda x, index: sparse24_op.sparse24_linear(
            x, packed[index % len(packed)], backend=named
        )
    factors = operands.factors
    return lambda x, index: low_rank_op.low_rank_linear(
        x, factors[index % len(factors)], backend=named
    )


def _explained(operands: Operands, x: Tensor) -> str:
    if operands.op == SPARSE:
        return str(sparse24_op.explain(x, operands.packed[0]))
    return str(low_rank_op.explain(x, operands.factors[0]))


def _drop_what_fails(found: Candidates, x: Tensor) -> None:
    for name, step in list(found.steps.items()):
        if not _runs(name, lambda step=step: step(x, 0), found.notes):  # type: ignore[misc]
            del found.steps[name]
    for name, call in list(found.isolated.items()):
        if not _runs(name, lambda call=call: call(0), found.notes):  # type: ignore[misc]
            del found.isolated[name]


def _runs(name: str, call: Callable[[], object], notes: dict[str, str]) -> bool:
    try:
        call()
    except SecateurError as error:
        notes[name] = f"not there: {error}"
    except RuntimeError as error:
        notes[name] = f"failed: {error}"
    else:
        return True
    return False
