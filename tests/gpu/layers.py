"""Layers of random weights in every form that the ops take, and what their results should be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gpu.forced_kernels import FORCED, forced, is_forced, kernel_of, supported
from torch import Tensor

from secateur_kernels.dispatch.problem import device_facts
from secateur_kernels.layouts import Fragment24, LowRank, RowOrder
from secateur_kernels.low_rank_linear import op as low_rank_op
from secateur_kernels.low_rank_linear import sparse_op
from secateur_kernels.low_rank_linear.cuda_kernel import LowRankShape, supports, takes_groups
from secateur_kernels.sparse24_linear import cuda_kernels
from secateur_kernels.sparse24_linear import launch as sparse24_launch
from secateur_kernels.sparse24_linear import op as sparse24_op
from secateur_kernels.testing.tolerance import (
    FP32_UNIT,
    Bounded,
    add,
    assert_integers_fit,
    epilogue,
    low_rank_product,
    product,
    unit_of,
)

SPARSE, LOW_RANK, BOTH = "sparse24_linear", "low_rank_linear", "sparse24_low_rank_linear"

BACKENDS = {
    # Kernels by name come first: where one hangs, those that choose among them are left out.
    SPARSE: (*FORCED, *sparse24_launch.BACKENDS),
    LOW_RANK: low_rank_op.BACKENDS,
    BOTH: sparse_op.BACKENDS,
}
# They round once, at the end; the others multiply by torch, which rounds every product.
ROUND_ONCE = ("reference", "triton", "cuda", *FORCED)


@dataclass(frozen=True)
class Size:
    """Op and sizes of a layer; `rank` is that of each group before it is padded."""

    op: str
    n: int
    k: int
    rank: int = 0
    group_rows: tuple[int, ...] = ()
    row_order: RowOrder = "natural"

    def __str__(self) -> str:
        rank = f"-rank{self.rank}" if self.rank else ""
        groups = f"-{len(self.group_rows)}groups" if self.group_rows else ""
        return f"{self.n}x{self.k}{rank}{groups}" + ("-gate_up" * (self.row_order == "gate_up"))


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight: packed 2:4 with its dense copy, factors, or both."""

    op: str
    sparse: Fragment24 | None
    dense: Tensor | None
    factors: LowRank | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the weight."""
        weight = self.sparse or self.factors
        assert weight is not None
        return weight.shape

    @property
    def device(self) -> torch.device:
        """Where its weight lies."""
        weight = self.sparse.data if self.sparse is not None else None
        if weight is None:
            assert self.factors is not None
            weight = self.factors.up
        return weight.device

    def takes(self, backend: str, m: int) -> bool:
        """Whether the backend has a kernel for m tokens: the compiled ones do not for all."""
        if is_forced(backend) and m > 0:
            return supported(backend, m, *self.shape, self.device)
        if backend != "cuda" or m == 0:
            return True
        capability = device_facts(self.device).capability
        if self.factors is None:
            return cuda_kernels.supports(m, *self.shape, capability)
        groups = self.factors.group_rows
        order = None if self.sparse is None else self.sparse.row_order
        sizes = LowRankShape(m, *self.shape, self.factors.rank, len(groups), order is not None)
        return supports(sizes, capability) and takes_groups(groups, order)

    def __call__(
        self,
        x: Tensor,
        backend: str = "auto",
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
    ) -> Tensor:
        """One call of the op; a name of `FORCED` has one kernel of backend `cuda` serve it."""
        if is_forced(backend):
            with forced(backend):
                return self(x, "cuda", bias, residual, activation)
        rest = {"bias": bias, "residual": residual, "activation": activation, "backend": backend}
        if self.op == SPARSE:
            dense = self.dense if backend == "dense" else None
            return sparse24_op.sparse24_linear(x, self.sparse, dense=dense, **rest)  # type: ignore[arg-type]
        if self.op == LOW_RANK:
            return low_rank_op.low_rank_linear(x, self.factors, **rest)  # type: ignore[arg-type]
        return sparse_op.sparse24_low_rank_linear(x, self.sparse, self.factors, **rest)  # type: ignore[arg-type]

    def resolved(self, x: Tensor, backend: str) -> str:
        """The backend itself, or for `auto` the one that dispatch chooses."""
        if backend != "auto":
            return backend
        if len(x) == 0:
            return "reference"
        if self.op == SPARSE:
            assert self.sparse is not None
            return sparse24_op.explain(x, self.sparse).backend
        assert self.factors is not None
        if self.op == LOW_RANK:
            return low_rank_op.explain(x, self.factors).backend
        assert self.sparse is not None
        return sparse_op.explain(x, self.sparse, self.factors).backend

    def described(self, backend: str, m: int) -> str:
        """Backend, tokens and, for a kernel by name, its config: for messages."""
        what = f"{backend}, {m} tokens, weight {list(self.shape)}"
        if is_forced(backend) and m > 0:
            facts = device_facts(self.device)
            device = (facts.num_sms, facts.capability)
            what += f", {kernel_of(backend).default_config(m, *self.shape, *device)}"
        return what

    def expected(
        self,
        x: Tensor,
        backend: str,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
    ) -> Bounded:
        """The truth for x [M, K], with the roundings that the named backend makes on the way."""
        plain = activation == "none" and residual is None
        return finished(
            self.product(x, backend, plain), x.dtype, backend, bias, residual, activation
        )

    def product(self, x: Tensor, backend: str, plain: bool = True) -> Bounded:
        """x @ weight.T as the backend has it before its epilogue.

        Args:
            x: [M, K].
            backend: decides what is rounded; not `auto`.
            plain: neither activation nor residual follow: torch's product is then rounded once,
                bias included, and that rounding is the one of the result.
        """
        unit = unit_of(x.dtype)
        once = backend in ROUND_ONCE
        low_rank = sparse = None
        if self.factors is not None:
            low_rank = low_rank_product(x, self.factors, FP32_UNIT if once else unit)
        if self.dense is not None:
            sparse = product(x, self.dense)
        if sparse is not None and low_rank is not None:
            if once:
                return add(sparse, low_rank)
            return add(sparse.rounded(unit), low_rank.rounded(unit), unit)
        alone = sparse or low_rank
        assert alone is not None
        fused_bias = self.factors is None or len(self.factors.group_rows) == 1
        return alone if once or (plain and fused_bias) else alone.rounded(unit)


def finished(
    product: Bounded,
    dtype: torch.dtype,
    backend: str,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Bounded:
    """The epilogue after a product, each step in the precision that the backend has."""
    unit = FP32_UNIT if backend in ROUND_ONCE else unit_of(dtype)
    return epilogue(product, bias, residual, activation, unit)


def random_layer(
    size: Size,
    dtype: torch.dtype,
    device: torch.device,
    integers: bool = False,
    seed: int = 0,
) -> Layer:
    """A layer whose results are of size one for x of size one; or of integers, for exact sums."""
    generator = torch.Generator(device).manual_seed(seed)
    sparse = dense = factors = None
    if size.op != LOW_RANK:
        dense = random_24(size.n, size.k, dtype, generator, integers)
        sparse = Fragment24.from_dense(dense, row_order=size.row_order)
    if size.op != SPARSE:
        factors = random_factors(size, dtype, generator, integers)
    return Layer(size.op, sparse, dense, factors)


def random_24(
    n: int, k: int, dtype: torch.dtype, generator: torch.Generator, integers: bool = False
) -> Tensor:
    """[N, K] with exactly two of every four columns not zero, every pattern as likely."""
    device = generator.device
    pairs = torch.combinations(torch.arange(4, device=device), 2)
    kept = torch.zeros(6, 4, dtype=torch.bool, device=device).scatter_(1, pairs, True)
    pattern = torch.randint(6, (n, k // 4), generator=generator, device=device)
    weight = random_values((n, k), dtype, generator, integers, scale=(2 / k) ** 0.5)
    weight = torch.where(weight == 0, torch.ones_like(weight), weight)
    return weight.masked_fill_(~kept[pattern].view(n, k), 0.0)


def random_factors(
    size: Size, dtype: torch.dtype, generator: torch.Generator, integers: bool
) -> LowRank:
    """One group, or as many as the size names, of the same rank."""
    parts = []
    for rows in size.group_rows or (size.n,):
        up = random_values((rows, size.rank), dtype, generator, integers, size.rank**-0.5, 1)
        down = random_values((size.rank, size.k), dtype, generator, integers, size.k**-0.5, 1)
        parts.append(LowRank.from_factors(up, down))
    return LowRank.stack(parts)


def random_values(
    shape: Sequence[int],
    dtype: torch.dtype,
    generator: torch.Generator,
    integers: bool = False,
    scale: float = 1.0,
    largest: int = 3,
) -> Tensor:
    """Normal values times `scale`, or integers of -largest to largest."""
    device = generator.device
    if integers:
        bounds = (-largest, largest + 1)
        return torch.randint(*bounds, tuple(shape), generator=generator, device=device).to(dtype)
    values = torch.empty(tuple(shape), dtype=dtype, device=device)
    # In the dtype itself: an fp32 copy of the largest weights would not fit beside the rest.
    return values.normal_(generator=generator).mul_(scale)


def check_integers_fit(layer: Layer, x: Tensor) -> None:
    """Fail unless every partial sum of the layer is an integer that fp32 holds exactly."""
    sums = []
    if layer.dense is not None:
        sums.append(x.double().abs() @ layer.dense.double().abs().T)
    if layer.factors is not None:
        down, up = layer.factors.down.double(), layer.factors.up.double()
        hidden = (x.double() @ down.T).split(layer.factors.rank, dim=1)
        sums.append(x.double().abs() @ down.abs().T)
        rows = up.split(layer.factors.group_rows)
        sums += [h.abs() @ part.abs().T for h, part in zip(hidden, rows, strict=True)]
    assert_integers_fit(sums)
