"""The GPU suite's checks, run on the CPU at small sizes: they pass where they should, and fail.

Backends are the reference and, in Triton's interpreter, the kernels themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gpu.accuracy_checks import (
    Case,
    case_of,
    check_empty,
    check_epilogue_forms,
    check_epilogues,
    check_input_forms,
    check_integers,
    check_one_hot,
    check_token_counts,
)
from gpu.gradient_checks import (
    check_canonical_gradients,
    check_compiled,
    check_factor_gradients,
    check_gradient_of_x,
    check_op,
)
from gpu.launch_checks import check_repetition, inputs_for
from gpu.layers import BOTH, LOW_RANK, SPARSE, Layer, Size, random_layer
from gpu.memory_checks import (
    check_canaries,
    check_large_weight,
    check_many_elements,
    check_poison_at_one_column,
    check_rows_are_apart,
    check_unwritten_memory,
)
from gpu.packing_checks import (
    SOURCES,
    awkward_weight,
    check_keep_largest,
    check_pack,
    check_pack_beyond_32_bits,
    check_pack_forms,
    check_unpack,
)
from thoroughness import most_telling
from torch import Tensor

from secateur_kernels import Canonical24
from secateur_kernels.backends import triton_interprets
from secateur_kernels.layouts.pattern import pairs_of, scatter_pairs

# NumPy's opinion of what Triton's interpreter does with it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:triton.*", "ignore::RuntimeWarning:triton.*"
)

CPU = torch.device("cpu")
BF16, FP16 = torch.bfloat16, torch.float16
SIZES = (
    Size(SPARSE, 72, 136),
    Size(SPARSE, 64, 64, row_order="gate_up"),
    Size(LOW_RANK, 70, 40, 12, (20, 30, 20)),
    Size(BOTH, 72, 136, 20),
)
BACKENDS = ["reference"] + ["triton"] * triton_interprets()
EVERY_SIZE = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.op}-{size}")
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
# An interpreter takes its time: by default it has the sizes with a sparse and a low-rank part.
EVERY_PAIR = pytest.mark.parametrize(
    ("size", "backend"),
    [
        (size, backend)
        for backend in BACKENDS
        for size in (SIZES if backend == "reference" else most_telling(SIZES, SIZES[-2:]))
    ],
    ids=str,
)


def case(size: Size, backend: str, dtype: torch.dtype = FP16, integers: bool = False) -> Case:
    # Triton's interpreter truncates to bf16.
    truncates = backend == "triton" and dtype == BF16
    return case_of(size, dtype, CPU, 34, integers, truncates)


@EVERY_PAIR
def test_accuracy(size: Size, backend: str) -> None:
    some = case(size, backend, BF16)
    check_token_counts(some, backend, (0, 1, 17, 33))
    check_epilogues(some, backend, (7,))
    some = case(size, backend, FP16)
    check_token_counts(some, backend, (1, 33))
    check_input_forms(some, backend, 8)
    check_epilogue_forms(some, backend, 4)
    check_empty(some.layer, FP16, CPU)


@EVERY_BACKEND
@EVERY_SIZE
def test_exactness(size: Size, backend: str) -> None:
    check_integers(case(size, backend, integers=True), backend, (0, 1, 9))
    if size.op == SPARSE:
        check_one_hot(random_layer(size, BF16, CPU), backend, (8, 200))


@EVERY_PAIR
def test_memory(size: Size, backend: str) -> None:
    some = case(size, backend)
    check_canaries(some, backend, (7,))
    check_unwritten_memory(some, backend, (17,))
    check_rows_are_apart(some, backend, (9,))
    check_many_elements(size, 9, backend, FP16, CPU)
    check_repetition(some.layer, inputs_for(some.layer, 3, 1, FP16, CPU), backend, times=1)
    if size.op == SPARSE:
        check_poison_at_one_column(some, backend, 5)


@pytest.mark.parametrize("backend", ["reference", "unpack"])
def test_large_weight(backend: str) -> None:
    check_large_weight(Size(SPARSE, 256, 64), 3, backend, FP16, CPU, rows=64)


@EVERY_BACKEND
@pytest.mark.parametrize("source", SOURCES)
def test_packing(source: str, backend: str) -> None:
    check_pack(awkward_weight(16, 68, BF16, CPU), source, "gate_up", backend)
    check_pack(awkward_weight(33, 12, torch.float32, CPU), source, "natural", backend)


@EVERY_BACKEND
def test_packing_of_any_memory_order_and_back(backend: str) -> None:
    check_pack_forms(awkward_weight(9, 20, BF16, CPU), backend)
    check_pack_forms(awkward_weight(1, 8, FP16, CPU), backend)
    check_pack_beyond_32_bits(128, 64, FP16, CPU, backend)
    check_unpack(awkward_weight(70, 68, BF16, CPU), "natural", backend)
    check_unpack(awkward_weight(32, 8, FP16, CPU), "gate_up", backend)
    score = awkward_weight(12, 17, torch.float32, CPU)
    for form in (score, score.T, score[:, 1:], score[::2]):
        check_keep_largest(form, form.shape[1] // 2, backend)


@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
def test_gradients(activation: str) -> None:
    layer = random_layer(Size(SPARSE, 72, 136), BF16, CPU)
    check_gradient_of_x(layer, 5, "reference", BF16)
    assert layer.dense is not None
    weight = Canonical24.from_dense(layer.dense)
    pairs = pairs_of(weight.nibbles())

    def dense_of(values: Tensor) -> Tensor:
        return scatter_pairs(values.view(72, -1, 2), pairs)

    check_canonical_gradients(weight.values, weight.indices, dense_of, 5, activation)
    factors = random_layer(Size(LOW_RANK, 72, 136, 48), BF16, CPU).factors
    assert factors is not None
    check_factor_gradients(factors, 5, activation)


@pytest.mark.compiled
@EVERY_SIZE
def test_compiled_graphs(size: Size) -> None:
    layer = random_layer(size, BF16, CPU)
    xs = [inputs_for(layer, m, 1, BF16, CPU)[0] for m in (4, 7)]
    check_compiled(layer, xs, "auto", {"backend": "aot_eager", "dynamic": True})
    check_op(layer, xs[0], "reference")


# What must not get through: each takes a right result and returns a wrong one.
FAULTS: dict[str, "Fault"] = {
    "one product lost": lambda y, x, layer: y - x[:, :1] * _column(layer, 0),
    "rows in another order": lambda y, x, layer: y.flip(1),
    "last token not written": lambda y, x, layer: torch.cat([y[:-1], y[-1:] * torch.nan]),
    "one feature left at zero": lambda y, x, layer: y * (torch.arange(y.shape[1]) != 3),
    "wrong shape": lambda y, x, layer: y[:, 1:],
}


def _column(layer: Layer, column: int) -> Tensor:
    assert layer.dense is not None
    return layer.dense[:, column]


Fault = Callable[[Tensor, Tensor, Layer], Tensor]


@dataclass(frozen=True, eq=False)
class _Faulty(Layer):
    """A layer with a fault."""

    fault: Fault

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        y = super().__call__(x, *rest, **named)
        return self.fault(y, x, self) if len(y) else y


def faulty(some: Case, fault: Fault) -> Case:
    layer = some.layer
    broken = _Faulty(layer.op, layer.sparse, layer.dense, layer.factors, fault)
    return replace(some, layer=broken, _products={})


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    exact = faulty(case(SIZES[0], "reference", integers=True), FAULTS[name])
    with pytest.raises(AssertionError, match="expected"):
        check_integers(exact, "reference", (1, 9))
    with pytest.raises(AssertionError, match="expected"):
        check_one_hot(exact.layer, "reference", (8,))
    normal = faulty(case(SIZES[0], "reference"), FAULTS[name])
    with pytest.raises(AssertionError):
        check_token_counts(normal, "reference", (1, 33))


def test_a_leak_of_poison_is_found() -> None:
    """Of what lies behind x, of another row, of memory that was never written."""
    some = case(SIZES[0], "reference")

    def reads_behind(y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        behind = torch.as_strided(x, (1,), (1,), x.storage_offset() + x.shape[1])
        return y + 0 * behind

    leaking = faulty(some, reads_behind)
    with pytest.raises(AssertionError, match="7 tokens in poison"):
        check_canaries(leaking, "reference", (7,))

    def writes_behind(y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        torch.as_strided(x, (1,), (1,), x.storage_offset() + x.shape[1]).zero_()
        return y

    writing = faulty(some, writes_behind)
    with pytest.raises(AssertionError, match="in or around x were overwritten"):
        check_canaries(writing, "reference", (7,))
    mixing = faulty(some, lambda y, x, layer: y + 0 * x.sum())
    with pytest.raises(AssertionError, match="elsewhere"):
        check_rows_are_apart(mixing, "reference", (9,))
    unwritten = faulty(some, lambda y, x, layer: y + 0 * torch.empty_like(y))
    with pytest.raises(AssertionError, match="outputs poisoned"):
        check_unwritten_memory(unwritten, "reference", (9,))
