"""How far a result may be from the truth, derived from K and dtype, element by element.

A `Bounded` is what a result should be, in float64, and how far a correct computation may end from
it. Every step of a computation has its rule here (a running error analysis: Higham, Accuracy and
Stability of Numerical Algorithms, sections 2.2, 3.1 and 3.3), so that a test bounds exactly the
roundings that a backend is allowed.

**Sums.** Products of two bf16 or fp16 numbers have at most 22 bits: exact in fp32. Adding K of
them in fp32 in any order gives at most gamma(K) * sum |x| |w|, gamma(n) = n u / (1 - n u). With
rounding to nearest u is 2**-24. Tensor cores align the terms of an instruction to the largest of
them and truncate (Fasi, Higham, Mikaitis, Pranesh 2021, PeerJ CS 7:e330): each of the K terms
loses at most 2**-23 of a partial sum, and so does the accumulator, once an instruction of at
least 8 terms and once more when it is normalised. `SUM_UNIT` and 2 K additions cover both.

**One rounding.** To a dtype of unit u (half its epsilon): u * |value|, and half its smallest
subnormal, or its smallest normal where subnormals are flushed.

The bound is for the worst case: with K = 18944 it is weak, and a lost product may hide in it. Two
sharper checks stand beside it. Where all inputs are small integers every sum is exact, and results
are compared bit for bit. And `assert_typical` compares the root mean square of the errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur_kernels.layouts import LowRank

SUM_UNIT = 2.0**-23
FP32_UNIT = 2.0**-24
# The largest integer up to which fp32 holds all of them.
EXACT_INTEGERS = 2**24

# The largest slope of silu, at 2.4.
_SILU_SLOPE = 1.1
# Below this fp32 results may be flushed, and exp(-x) overflows where silu(x) is smaller.
_TINY = 2.0**-118
_ROWS_AT_ONCE = 8192
_MOST_SPANS = 4


@dataclass(frozen=True, eq=False)
class Bounded:
    """A value and how far a computed one may be from it, both float64 of one shape."""

    value: Tensor
    error: Tensor

    def __getitem__(self, rows: slice) -> "Bounded":
        return Bounded(self.value[rows], self.error[rows])

    def rounded(self, unit: float) -> "Bounded":
        """After a rounding of relative size `unit`."""
        return replace(self, error=self.error + unit * (self.value.abs() + self.error) + _TINY)


def unit_of(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to nearest: half the distance of 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, unit: float = SUM_UNIT) -> float:
    """Bound of the relative error of `terms` operations of relative error `unit` each."""
    return terms * unit / (1 - terms * unit)


def exact(tensor: Tensor) -> Bounded:
    """A tensor as it is."""
    value = tensor.double()
    return Bounded(value, torch.zeros_like(value))


def product(x: Tensor, weight: Tensor) -> Bounded:
    """x @ weight.T summed in fp32, for x [M, K] and weight [N, K]: [M, N]."""
    columns, shape = x.shape[1], (len(x), len(weight))
    wide = x.double()
    value, error = wide.new_empty(shape), wide.new_empty(shape)
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = weight[rows].double().T
        value[:, rows] = wide @ part
        error[:, rows] = wide.abs() @ part.abs()
    return Bounded(value, error * gamma(2 * columns))


def low_rank_product(x: Tensor, factors: LowRank, hidden_unit: float = FP32_UNIT) -> Bounded:
    """(x @ down.T) @ up.T by groups; the intermediate is rounded with `hidden_unit`: [M, N].

    With hidden = x @ down.T known to within its own error e, the second sum adds
    |up| (e + gamma |hidden|).
    """
    rank = factors.rank
    hidden = product(x, factors.down).rounded(hidden_unit)
    sums = gamma(2 * rank)
    values, errors = [], []
    for group, rows in enumerate(factors.up.double().split(factors.group_rows)):
        columns = slice(group * rank, (group + 1) * rank)
        value, error = hidden.value[:, columns], hidden.error[:, columns]
        values.append(value @ rows.T)
        errors.append((error + sums * (value.abs() + error)) @ rows.abs().T)
    return Bounded(torch.cat(values, dim=1), torch.cat(errors, dim=1))


def add(left: Bounded, right: Bounded, unit: float = FP32_UNIT) -> Bounded:
    """left + right, rounded."""
    return Bounded(left.value + right.value, left.error + right.error).rounded(unit)


def multiply(left: Bounded, right: Bounded, unit: float = FP32_UNIT) -> Bounded:
    """left * right, rounded."""
    error = left.value.abs() * right.error + (right.value.abs() + right.error) * left.error
    return Bounded(left.value * right.value, error).rounded(unit)


def silu(x: Bounded, unit: float = FP32_UNIT) -> Bounded:
    """x / (1 + exp(-x)), computed in fp32 and rounded.

    The argument of exp2 is x * log2(e), rounded: that moves exp by |x| units. Two more units for
    exp2 itself, two for the division, each taken as 2**-22 for fast instructions.
    """
    value = x.value * torch.sigmoid(x.value)
    own = value.abs() * (4 + x.value.abs()) * 2.0**-22
    return Bounded(value, _SILU_SLOPE * x.error + own).rounded(unit)


def epilogue(
    product: Bounded,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    unit: float = FP32_UNIT,
) -> Bounded:
    """Bias, activation and residual, every step rounded with `unit`; arguments as of the ops."""
    result = product
    if bias is not None:
        result = add(result, exact(bias.expand(product.value.shape)), unit)
    if activation == "silu_and_mul":
        half = result.value.shape[1] // 2
        gate = Bounded(result.value[:, :half], result.error[:, :half])
        up = Bounded(result.value[:, half:], result.error[:, half:])
        result = multiply(silu(gate, unit), up, unit)
    if residual is not None:
        result = add(result, exact(residual), unit)
    return result


def assert_within(
    actual: Tensor, expected: Bounded, what: str = "result", truncates: bool = False
) -> None:
    """Fail unless every element is finite and within its error plus one rounding to its dtype.

    Infinity passes where the truth, with its error, is beyond the largest finite number.

    Args:
        actual: bf16, fp16 or fp32, shape of `expected`.
        expected: before it is rounded to the dtype of `actual`.
        what: named in the message.
        truncates: the last rounding is towards zero, as in Triton's interpreter for bf16.
    """
    assert actual.shape == expected.value.shape, (
        f"{what}: expected shape {list(expected.value.shape)}, got {list(actual.shape)}"
    )
    if actual.numel() == 0:
        return
    info = torch.finfo(actual.dtype)
    unit = info.eps if truncates else info.eps / 2
    smallest = max(info.smallest_normal * info.eps, 2.0**-126)
    allowed = expected.rounded(unit).error + smallest
    difference = (actual.double() - expected.value).abs()
    overflows = actual.isinf() & (actual.sign() == expected.value.sign())
    overflows &= expected.value.abs() + allowed >= info.max
    # Written so that NaN fails.
    wrong = ~(difference <= allowed) & ~overflows
    if bool(wrong.any()):
        raise AssertionError(_report(actual, expected.value, allowed, wrong, what))


def _report(actual: Tensor, value: Tensor, allowed: Tensor, wrong: Tensor, what: str) -> str:
    count = int(wrong.sum())
    excess = (actual.double() - value).abs() / allowed
    excess = torch.where(wrong, excess.nan_to_num(torch.inf, torch.inf), 0.0)
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    return (
        f"{what}: {count} of {actual.numel()} elements are further from the truth than rounding "
        f"allows{_pattern(actual, wrong)}; the worst at {worst}: expected "
        f"{float(value[worst]):.9g} +- {float(allowed[worst]):.3g}, got {float(actual[worst]):.9g}"
    )


def _pattern(actual: Tensor, wrong: Tensor) -> str:
    """Where the wrong elements are: often that names the part of a kernel that made them."""
    parts = []
    if wrong.ndim == 2:
        parts += [f"rows {_spans(wrong.any(1))}", f"columns {_spans(wrong.any(0))}"]
    kinds = {"are NaN": actual.isnan(), "are zero": actual == 0}
    counts = {kind: int((found & wrong).sum()) for kind, found in kinds.items()}
    parts += [f"{count} {kind}" for kind, count in counts.items() if count]
    return f" ({', '.join(parts)})" if parts else ""


def _spans(hit: Tensor) -> str:
    """The indices at which a vector is True, as spans: 0-63 and 128-191 of 4096."""
    edges = torch.nn.functional.pad(hit.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    told = [f"{a}-{b - 1}" if b - a > 1 else str(a) for a, b in spans[:_MOST_SPANS]]
    more = [f"{len(spans) - _MOST_SPANS} more"] if len(spans) > _MOST_SPANS else []
    return f"{' and '.join([*told, *more])} of {len(hit)}"


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Fail unless shapes, dtypes and all numbers agree; -0.0 and 0.0 are one number."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, (
        f"{what}: expected shape {list(expected.shape)}, got {list(actual.shape)}"
    )
    different = actual != expected
    if bool(different.any()):
        place = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(different.sum())} of {actual.numel()} elements differ"
            f"{_pattern(actual, different)}, the first at {place}: expected "
            f"{expected[place].item()}, got {actual[place].item()}"
        )


def assert_typical(actual: Tensor, expected: Bounded, terms: int, what: str = "result") -> None:
    """Fail if the errors are larger, in the root mean square, than one rounding explains.

    Allowed are 1.05 times what rounding the truth itself gives, plus a drift of the sums: an
    instruction of at least 8 kept products truncates the accumulator by at most 2**-23 of itself,
    always the same way. A second rounding to bf16 or fp16 anywhere makes it 1.4 times.

    Args:
        actual: bf16 or fp16.
        expected: the truth; its bound is not used.
        terms: products in each sum.
        what: named in the message.
    """
    if actual.numel() == 0:
        return
    rounding = _root_mean_square(expected.value.to(actual.dtype).double() - expected.value)
    seen = _root_mean_square(actual.double() - expected.value)
    drift = (terms // 8 + 1) * SUM_UNIT * _root_mean_square(expected.value)
    assert seen <= 1.05 * rounding + drift, (
        f"{what}: root mean square of the errors {seen:.3g}, rounding alone gives {rounding:.3g} "
        f"and the sums may drift by {drift:.3g}"
    )


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def assert_integers_fit(sums: Sequence[Tensor]) -> None:
    """Fail if a test with integers is not exact in fp32: sums of absolute products are too big."""
    for total in sums:
        assert float(total.max() if total.numel() else 0.0) < EXACT_INTEGERS, "sums are not exact"
