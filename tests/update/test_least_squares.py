import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import select_grouped
from secateur.update.damping import damped_hessian
from secateur.update.least_squares import conjugate_gradient, least_squares


def problem(rows: int, columns: int, seed: int = 0, num_tokens: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    inputs = torch.randn(num_tokens, columns, dtype=torch.float64, generator=generator)
    inputs = inputs + inputs @ mixing / columns**0.5
    return weight, inputs.T @ inputs * (2 / num_tokens)


def row_by_row(weight: Tensor, hessian: Tensor, keep: Tensor, damping: float) -> Tensor:
    """One plain solve a row."""
    matrix = damped_hessian(hessian, damping, torch.float64)
    solved = torch.zeros_like(weight)
    for row in range(len(weight)):
        places = keep[row].nonzero().flatten()
        system = matrix[places][:, places]
        solved[row, places] = torch.linalg.solve(system, matrix[places] @ weight[row])
    return solved


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 20),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    max_bytes=st.sampled_from([1, 4000, 1 << 20]),
)
def test_equals_one_solve_a_row(
    rows: int, columns: int, seed: int, share: float, max_bytes: int
) -> None:
    weight, hessian = problem(rows, columns, seed)
    keep = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    before = weight.clone()
    solved = least_squares(weight, hessian, keep, 0.01, max_bytes)
    # Condition numbers here are below 1e4: 1e4 * 2e-16, and room for accumulation.
    torch.testing.assert_close(
        solved, row_by_row(weight, hessian, keep, 0.01), rtol=1e-9, atol=1e-9
    )
    assert not solved[~keep].any()
    assert torch.equal(weight, before)


def test_no_other_weights_on_the_support_are_better() -> None:
    weight, hessian = problem(4, 16)
    keep = select_grouped(weight.abs(), 2, 4)
    matrix = damped_hessian(hessian, 0.01, torch.float64)

    def error(candidate: Tensor) -> Tensor:
        change = candidate - weight
        return (change @ matrix * change).sum(dim=1)

    solved = least_squares(weight, hessian, keep)
    best = error(solved)
    assert (best < 0.9 * error(weight.masked_fill(~keep, 0.0))).all()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        step = torch.randn(4, 16, dtype=torch.float64, generator=generator).masked_fill(~keep, 0.0)
        assert (error(solved + 1e-3 * step) > best).all()


def test_everything_kept_changes_nothing_but_dead_columns() -> None:
    weight, hessian = problem(3, 12)
    hessian[5] = hessian[:, 5] = 0.0
    keep = torch.ones(3, 12, dtype=torch.bool)
    expected = weight.clone()
    expected[:, 5] = 0.0
    for solved in (
        least_squares(weight, hessian, keep),
        conjugate_gradient(weight, hessian, keep, iterations=20),
    ):
        torch.testing.assert_close(solved, expected, rtol=1e-9, atol=1e-9)
        assert not solved[:, 5].any()


def test_single_precision_gives_nearly_the_same() -> None:
    weight, hessian = problem(6, 32)
    keep = select_grouped(weight.abs(), 2, 4)
    narrow = least_squares(weight.float(), hessian.float(), keep)
    assert narrow.dtype == torch.float32
    expected = least_squares(weight, hessian, keep)
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-3, atol=1e-4)


def test_conjugate_gradients_go_to_the_same_minimum() -> None:
    weight, hessian = problem(6, 32)
    keep = select_grouped(weight.abs(), 2, 4)
    exact = least_squares(weight, hessian, keep)
    matrix = damped_hessian(hessian, 0.01, torch.float64)
    gaps = []
    for iterations in (0, 2, 4, 8, 16, 40):
        change = conjugate_gradient(weight, hessian, keep, iterations=iterations) - exact
        gaps.append(float((change @ matrix * change).sum()))
    assert gaps == sorted(gaps, reverse=True)
    # 16 unknowns a row: done after 16 steps but for rounding, which later steps remove.
    assert gaps[-1] < 1e-20 * gaps[0]
    again = conjugate_gradient(weight, hessian, keep, iterations=3, start=exact)
    torch.testing.assert_close(again, exact, rtol=1e-9, atol=1e-9)
    assert not again[~keep].any()


def test_fewer_tokens_than_columns_are_no_trouble() -> None:
    weight, hessian = problem(4, 32, num_tokens=5)
    keep = select_grouped(weight.abs(), 2, 4)
    solved = least_squares(weight.float(), hessian.float(), keep)
    change = solved.double() - weight
    masked = weight.masked_fill(~keep, 0.0) - weight
    assert (change @ hessian * change).sum() < 0.5 * (masked @ hessian * masked).sum()


def test_double_precision_and_damping_rescue_what_does_not_factor() -> None:
    # Eigenvalues 2 + d and -d, d = 2^-10: damping has to be more than d.
    hessian = torch.tensor([[1.0, 1.0 + 2.0**-10], [1.0 + 2.0**-10, 1.0]])
    # The second row alone would factor.
    keep = torch.tensor([[True, True], [True, False]])
    weight = torch.tensor([[1.0, 2.0]]).repeat(2, 1)
    torch.testing.assert_close(least_squares(weight, hessian, keep, 1e-4)[0], weight[0])
    with pytest.raises(SecateurError, match=r"not positive definite even in float64 .* 0.0001;"):
        least_squares(weight, hessian, keep, 1e-7)


def test_bad_arguments_are_refused() -> None:
    weight, hessian = problem(2, 4)
    keep = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(SecateurError, match=r"expected hessian \[4, 4\] and keep_mask \[2, 4\]"):
        least_squares(weight, hessian[:3], keep)
    with pytest.raises(SecateurError, match=r"got \[4, 4\] and \[1, 4\]"):
        conjugate_gradient(weight, hessian, keep[:1])
    hessian[0, 0] = torch.nan
    with pytest.raises(SecateurError, match="expected a finite Hessian"):
        least_squares(weight, hessian, keep)
