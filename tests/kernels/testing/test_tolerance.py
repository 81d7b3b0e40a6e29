"""The bounds hold for what they allow, and nothing else gets through."""

import pytest
import torch
from torch import Tensor

from secateur_kernels import LowRank
from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.low_rank_linear.reference import two_gemms
from secateur_kernels.testing.tolerance import (
    FP32_UNIT,
    Bounded,
    assert_integers_fit,
    assert_same_bits,
    assert_typical,
    assert_within,
    epilogue,
    exact,
    gamma,
    low_rank_product,
    product,
    silu,
    unit_of,
)

BF16, FP16 = torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def truncated(value: Tensor, bits: int) -> Tensor:
    """To `bits` significant bits, towards zero."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp((mantissa * 2**bits).trunc(), exponent - bits)


def summed(x: Tensor, weight: Tensor, bits: int) -> Tensor:
    """x @ weight.T, the sum truncated to `bits` bits after every product."""
    total = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for column in range(x.shape[1]):
        total += x[:, column, None].double() * weight[None, :, column].double()
        total = truncated(total, bits)
    return total


def test_units() -> None:
    assert (unit_of(BF16), unit_of(FP16)) == (2.0**-8, 2.0**-11)
    assert gamma(4, 0.01) == pytest.approx(0.04 / 0.96)


@DTYPES
@pytest.mark.parametrize("columns", [1, 4, 60, 2048])
def test_a_truncating_fp32_sum_is_allowed_and_a_shorter_one_is_not(
    dtype: torch.dtype, columns: int
) -> None:
    x, weight = normal(6, columns, dtype=dtype), normal(9, columns, dtype=dtype, seed=1)
    expected = product(x, weight)
    assert_within(summed(x, weight, 24).to(dtype), expected)
    assert bool(((summed(x, weight, 24) - expected.value).abs() <= expected.error).all())
    if columns > 1:
        with pytest.raises(AssertionError, match="further from the truth than rounding allows"):
            assert_within(summed(x, weight, 9).to(dtype), expected)


@DTYPES
def test_a_value_two_rounding_steps_away_is_refused(dtype: torch.dtype) -> None:
    expected = product(normal(5, 8, dtype=dtype), normal(7, 8, dtype=dtype, seed=1))
    y = expected.value.to(dtype)
    assert_within(y, expected)
    y[3, 4] *= 1 + 4 * unit_of(dtype)
    with pytest.raises(AssertionError, match=r"result: 1 of 35 .*rows 3 of 5, .* at \(3, 4\)"):
        assert_within(y, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    expected = exact(normal(4, 4))
    y = expected.value.to(BF16)
    y[1, 2] = bad
    with pytest.raises(AssertionError, match=r"the worst at \(1, 2\)"):
        assert_within(y, expected)


def test_overflow_is_allowed_where_the_truth_overflows() -> None:
    expected = exact(torch.tensor([[65519.0, 65520.0, -70000.0, 1.0]]))
    y = expected.value.to(FP16)
    assert y.tolist() == [[65504.0, torch.inf, -torch.inf, 1.0]]
    assert_within(y, expected)
    with pytest.raises(AssertionError, match="1 of 4"):
        assert_within(y * torch.tensor([1, -1, 1, 1], dtype=FP16), expected)


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"expected shape \[2, 3\], got \[3, 2\]"):
        assert_within(torch.zeros(3, 2), exact(torch.zeros(2, 3)))
    assert_within(torch.zeros(0, 3), exact(torch.zeros(0, 3)))


@DTYPES
def test_a_second_rounding_shows_in_the_root_mean_square(dtype: torch.dtype) -> None:
    x, weight = normal(64, 256, dtype=dtype), normal(128, 256, dtype=dtype, seed=1)
    expected = product(x, weight)
    assert_typical((x.float() @ weight.float().T).to(dtype), expected, 256)
    parts = zip(x.float().chunk(2, dim=1), weight.float().chunk(2, dim=1), strict=True)
    halves = [(left @ right.T).to(dtype) for left, right in parts]
    with pytest.raises(AssertionError, match="rounding alone gives"):
        assert_typical(halves[0] + halves[1], expected, 256)


@DTYPES
def test_low_rank_bound_holds_for_each_way_of_rounding(dtype: torch.dtype) -> None:
    x = normal(7, 96, dtype=dtype)
    up, down = normal(40, 32, dtype=dtype, seed=1), normal(64, 96, dtype=dtype, seed=2)
    factors = LowRank(down, up, (25, 15))
    plain = (x, factors.down, factors.up, factors.group_rows)
    hidden = (x.float() @ factors.down.float().T).split(32, dim=1)
    rows = factors.up.float().split([25, 15])
    once = torch.cat([h @ part.T for h, part in zip(hidden, rows, strict=True)], dim=1)
    assert_within(once.to(dtype), low_rank_product(x, factors))
    twice = two_gemms(*plain, None, None, "none")
    assert_within(twice, low_rank_product(x, factors, unit_of(dtype)).rounded(unit_of(dtype)))
    # In fp16 the allowance of the sums hides a rounding; `assert_typical` is for that.
    if dtype == BF16:
        with pytest.raises(AssertionError, match="further from the truth"):
            assert_within(twice, low_rank_product(x, factors))


def test_silu_bound_over_the_whole_range() -> None:
    x = torch.cat([torch.linspace(-110, 110, 20001), torch.tensor([0.0, -1e-30, 1e-30])])
    bound = silu(exact(x))
    fused = torch.nn.functional.silu(x)
    spelled_out = x / (1 + torch.exp2(-x * 1.4426950408889634))
    for computed in (fused, spelled_out):
        assert bool(((computed.double() - bound.value).abs() <= bound.error).all())
    relative = bound.error / bound.value.abs().clamp(min=1e-6)
    assert float(relative[x.abs() < 8].max()) < 2.0**-18


@DTYPES
@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
def test_epilogue_bound(dtype: torch.dtype, activation: str) -> None:
    x, weight = normal(9, 64, dtype=dtype), normal(48, 64, dtype=dtype, seed=1)
    bias = normal(48, dtype=dtype, seed=2)
    residual = normal(9, 48 if activation == "none" else 24, dtype=dtype, seed=3)
    single = apply_epilogue(x.float() @ weight.float().T, bias, residual, activation).to(dtype)
    expected = epilogue(product(x, weight), bias, residual, activation)
    assert_within(single, expected)
    rounded = (x.float() @ weight.float().T).to(dtype)
    every_step = apply_epilogue(rounded, bias, residual, activation)
    unit = unit_of(dtype)
    allowed = epilogue(product(x, weight).rounded(unit), bias, residual, activation, unit)
    assert_within(every_step, allowed)
    with pytest.raises(AssertionError, match="further from the truth"):
        assert_within(every_step, expected)
    with pytest.raises(AssertionError, match="further from the truth"):
        assert_within(single + bias[:1], expected)


def test_bits() -> None:
    y = normal(3, 4, dtype=BF16)
    assert_same_bits(y, y.clone())
    assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    other = y.clone()
    other[2, 1] = torch.nan
    with pytest.raises(
        AssertionError, match=r"1 of 12 elements differ \(.*\), the first at \(2, 1\)"
    ):
        assert_same_bits(other, y)
    with pytest.raises(AssertionError, match=r"1 of 12 elements differ"):
        assert_same_bits(other, other)
    with pytest.raises(AssertionError, match="float16"):
        assert_same_bits(y, y.half())


def test_a_failure_says_where_the_wrong_elements_are() -> None:
    """A tile that was not written, a warp that multiplied twice: rows and columns tell."""
    y = torch.ones(256, 512)
    other = y.clone()
    other[64:128, 128:192] = 0.0
    other[64:128, 256:320] = torch.nan
    other[130, 200] = 7.0
    pattern = (
        r"8193 of 131072 elements .* \(rows 64-127 and 130 of 256, columns 128-191 and 200 and "
        r"256-319 of 512, 4096 are NaN, 4096 are zero\)"
    )
    with pytest.raises(AssertionError, match=pattern):
        assert_same_bits(other, y)
    with pytest.raises(AssertionError, match=pattern):
        assert_within(other, exact(y))
    every_second = y.clone()
    every_second[:, ::2] = 2.0
    with pytest.raises(AssertionError, match="columns 0 and 2 and 4 and 6 and 252 more of 512"):
        assert_same_bits(every_second, y)


def test_integers_that_do_not_fit_are_no_exact_test() -> None:
    assert_integers_fit([torch.tensor([2.0**24 - 1]), torch.zeros(0)])
    with pytest.raises(AssertionError, match="not exact"):
        assert_integers_fit([torch.tensor([1.0, 2.0**24])])


def test_rounding_adds_to_what_was_there() -> None:
    value = Bounded(torch.tensor([2.0]).double(), torch.tensor([0.5]).double())
    assert float(value.rounded(0.01).error) == pytest.approx(0.5 + 0.025)
    assert float(value[slice(0, 1)].value) == 2.0
    assert float(exact(torch.tensor([3.0])).error) == 0.0
    assert FP32_UNIT == torch.finfo(torch.float32).eps / 2
