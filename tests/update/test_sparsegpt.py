from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import select_grouped, select_unstructured
from secateur.update import HessianFactor, factor_hessian, sparsegpt

Select = Callable[[Tensor], Tensor]


def keep_best(score: Tensor, count: int) -> Tensor:
    """Of all of `score`, the `count` highest."""
    values = score.flatten().tolist()
    order = sorted(range(len(values)), key=lambda place: -values[place])
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(score.shape)


def keep_best_of_groups(score: Tensor, keep: int, group: int) -> Tensor:
    parts = [keep_best(part[None], keep) for row in score for part in row.split(group)]
    return torch.cat(parts).reshape(score.shape)


def keep_half_of_rows(score: Tensor) -> Tensor:
    return torch.cat([keep_best(row[None], -(-len(row) // 2)) for row in score])


def keep_half_jointly(score: Tensor) -> Tensor:
    return keep_best(score, -(-score.numel() // 2))


@dataclass
class Case:
    """One way to choose: with the textbook's own selection, and with the project's."""

    columns: int
    select_columns: int
    textbook: Select
    select: Select


CASES = {
    "2:4": Case(32, 4, lambda s: keep_best_of_groups(s, 2, 4), lambda s: select_grouped(s, 2, 4)),
    "4:8": Case(40, 8, lambda s: keep_best_of_groups(s, 4, 8), lambda s: select_grouped(s, 4, 8)),
    "1:6": Case(36, 6, lambda s: keep_best_of_groups(s, 1, 6), lambda s: select_grouped(s, 1, 6)),
    "blocks of 128": Case(
        144, 128, keep_half_jointly, lambda s: select_unstructured(s, 0.5, "matrix")
    ),
    "blocks of 10": Case(
        37, 10, keep_half_jointly, lambda s: select_unstructured(s, 0.5, "block", 10)
    ),
    "rows": Case(33, 33, keep_half_of_rows, lambda s: select_unstructured(s, 0.5, "row")),
    "rows of a narrow matrix": Case(
        24, 128, keep_half_of_rows, lambda s: select_unstructured(s, 0.5, "row")
    ),
    "matrix": Case(33, 33, keep_half_jointly, lambda s: select_unstructured(s, 0.5, "matrix")),
}


def problem(rows: int, columns: int, seed: int = 0, num_tokens: int = 400) -> tuple[Tensor, Tensor]:
    """A weight matrix and the Hessian of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    inputs = torch.randn(num_tokens, columns, dtype=torch.float64, generator=generator)
    inputs = inputs + inputs @ mixing / columns**0.5
    return weight, inputs.T @ inputs * (2 / num_tokens)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """Ones in place of the zero diagonal of dead inputs, then damping by the diagonal's mean."""
    mended = hessian.clone()
    for column in range(len(mended)):
        if mended[column, column] == 0:
            mended[column, column] = 1.0
    mean = sum(mended.diagonal().tolist()) / len(mended)
    return mended + damping * mean * torch.eye(len(mended), dtype=mended.dtype)


def textbook(
    weight: Tensor, hessian: Tensor, damping: float, select: Select, select_columns: int
) -> tuple[Tensor, Tensor, float]:
    """Optimal Brain Surgeon, column by column: no blocks and no Cholesky factor.

    `inverses[p]` is the inverse Hessian of the columns from p on, those that may still change.
    Removing w_p costs w_p^2 / inverse_pp and changes the others by -w_p / inverse_pp * inverse_p.
    A column that is done leaves the inverse by one step of Gaussian elimination, after which its
    row and column there are zero up to rounding.

    Returns:
        Weights, mask and the sum of what every removal cost.
    """
    rows, columns = weight.shape
    inverses = [torch.linalg.inv(damped(hessian, damping))]
    for column in range(columns - 1):
        last = inverses[-1]
        inverses.append(last - torch.outer(last[:, column], last[column]) / last[column, column])
    weight = weight.clone()
    for column in range(columns):
        if hessian[column, column] == 0:
            weight[:, column] = 0.0
    mask = torch.ones(rows, columns, dtype=torch.bool)
    cost = 0.0
    for column in range(columns):
        if column % select_columns == 0:
            chosen = range(column, min(column + select_columns, columns))
            scores = [weight[:, c] ** 2 / inverses[c][c, c] for c in chosen]
            mask[:, column : column + len(chosen)] = select(torch.stack(scores, dim=1))
        inverse = inverses[column]
        for row in range(rows):
            if not mask[row, column]:
                removed = weight[row, column].clone()
                weight[row] -= removed / inverse[column, column] * inverse[column]
                weight[row, column] = 0.0
                cost += float(removed**2 / inverse[column, column])
    return weight, mask, cost


def output_error(change: Tensor, hessian: Tensor) -> float:
    """tr(change H change^T)."""
    return float((change @ hessian * change).sum())


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_textbook(name: str) -> None:
    case = CASES[name]
    weight, hessian = problem(5, case.columns)
    expected, expected_mask, cost = textbook(
        weight, hessian, 0.01, case.textbook, case.select_columns
    )
    before = weight.clone()
    factor = factor_hessian(hessian, 0.01)
    pruned, mask = sparsegpt(weight, factor, case.select, case.select_columns)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(pruned, expected, rtol=1e-9, atol=1e-9)
    assert not pruned[~mask].any()
    assert pruned[mask].all()
    assert torch.equal(weight, before)
    # What all removals cost is what the output, by the damped Hessian, moved in the end.
    moved = output_error(pruned - weight, damped(hessian, 0.01))
    assert moved == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("block_size", [1, 3, 7, 32, 1000])
@pytest.mark.parametrize("name", CASES)
def test_block_size_changes_nothing(name: str, block_size: int) -> None:
    case = CASES[name]
    weight, hessian = problem(3, case.columns, seed=1)
    factor = factor_hessian(hessian)
    expected, expected_mask = sparsegpt(weight, factor, case.select, case.select_columns)
    pruned, mask = sparsegpt(weight, factor, case.select, case.select_columns, block_size)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(pruned, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("columns", "select_columns", "widths"),
    [(12, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (10, 10, [10]), (10, 128, [10]), (3, 1, [1, 1, 1])],
)
def test_columns_are_chosen_so_many_at_a_time(
    columns: int, select_columns: int, widths: list[int]
) -> None:
    weight, hessian = problem(2, columns)
    seen = []

    def select(score: Tensor) -> Tensor:
        seen.append(score.shape[1])
        return torch.ones_like(score, dtype=torch.bool)

    pruned, mask = sparsegpt(weight, factor_hessian(hessian), select, select_columns, 2)
    assert seen == widths
    assert mask.all()
    assert torch.equal(pruned, weight)


def test_later_columns_are_chosen_from_updated_weights() -> None:
    weight, hessian = problem(8, 32)
    factor = factor_hessian(hessian)
    scores: list[Tensor] = []

    def select(score: Tensor) -> Tensor:
        scores.append(score)
        return select_grouped(score, 2, 4)

    sparsegpt(weight, factor, select, 4)
    untouched = (weight / factor.upper.diagonal()) ** 2
    assert torch.allclose(scores[0], untouched[:, :4])
    assert not torch.allclose(torch.cat(scores[1:], dim=1), untouched[:, 4:])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["2:4", "4:8", "blocks of 10", "rows", "matrix"])
def test_update_makes_the_error_smaller(name: str, seed: int) -> None:
    case = CASES[name]
    weight, hessian = problem(8, case.columns, seed)
    pruned, mask = sparsegpt(weight, factor_hessian(hessian), case.select, case.select_columns)
    masked_only = weight.masked_fill(~mask, 0.0)
    updated_error = output_error(pruned - weight, hessian)
    assert 0.0 < updated_error < 0.9 * output_error(masked_only - weight, hessian)


def test_single_precision_gives_nearly_the_same() -> None:
    weight, hessian = problem(8, 32)
    factor = factor_hessian(hessian.float())
    assert (factor.dtype, factor.damping) == (torch.float32, 0.01)
    assert factor.upper.dtype == torch.float32
    pruned, mask = sparsegpt(weight.float(), factor, lambda s: select_grouped(s, 2, 4), 4)
    expected, expected_mask = sparsegpt(
        weight, factor_hessian(hessian), lambda s: select_grouped(s, 2, 4), 4
    )
    assert pruned.dtype == torch.float32
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dead", [[0], [31], [4, 5, 6], [1, 3, 8, 9, 10, 11]])
def test_dead_columns_are_zero_and_make_nothing_move(dead: list[int]) -> None:
    weight, hessian = problem(6, 32)
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    factor = factor_hessian(hessian)
    assert factor.dead.nonzero().flatten().tolist() == dead
    pruned, mask = sparsegpt(weight, factor, lambda s: select_grouped(s, 2, 4), 4)
    assert not pruned[:, dead].any()
    expected, expected_mask, _ = textbook(
        weight, hessian, 0.01, lambda s: select_grouped(s, 2, 4), 4
    )
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(pruned, expected, rtol=1e-9, atol=1e-9)
    # A dead column never takes the place of a live one.
    live = [column for column in range(32) if column not in dead]
    for start in range(0, 32, 4):
        num_live = sum(start <= column < start + 4 for column in live)
        kept_live = mask[:, [c for c in live if start <= c < start + 4]].sum(dim=1)
        assert kept_live.tolist() == [min(2, num_live)] * 6


def test_factor_is_the_upper_root_of_the_damped_inverse() -> None:
    _, hessian = problem(1, 24)
    hessian[5] = hessian[:, 5] = 0.0
    before = hessian.clone()
    factor = factor_hessian(hessian, 0.05)
    assert (factor.dtype, factor.damping) == (torch.float64, 0.05)
    assert factor.upper.dtype == torch.float64
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.upper.diagonal() > 0).all()
    expected = torch.linalg.inv(damped(hessian, 0.05))
    torch.testing.assert_close(factor.upper.T @ factor.upper, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(hessian, before)


def test_fewer_tokens_than_columns_are_no_trouble() -> None:
    weight, hessian = problem(4, 32, num_tokens=5)
    assert int(torch.linalg.matrix_rank(hessian)) == 5
    factor = factor_hessian(hessian.float())
    assert (factor.dtype, factor.damping) == (torch.float32, 0.01)
    pruned, mask = sparsegpt(weight.float(), factor, lambda s: select_grouped(s, 2, 4), 4)
    assert pruned.isfinite().all()
    masked_only = weight.masked_fill(~mask, 0.0)
    error = output_error(pruned.double() - weight, hessian)
    assert error < output_error(masked_only - weight, hessian)


def test_double_precision_rescues_what_single_cannot_factor() -> None:
    # 1 + 1e-9 is 1 in fp32, where the matrix of ones stays singular.
    factor = factor_hessian(torch.ones(2, 2), damping=1e-9)
    assert (factor.dtype, factor.damping) == (torch.float64, 1e-9)
    assert factor.upper.dtype == torch.float32
    expected = torch.linalg.inv(torch.ones(2, 2).double() + 1e-9 * torch.eye(2).double())
    inverse = factor.upper.double().T @ factor.upper.double()
    torch.testing.assert_close(inverse, expected, rtol=1e-5, atol=0.0)


def slightly_indefinite() -> Tensor:
    """Eigenvalues 2 + d and -d, d = 2^-10: damping has to be more than d."""
    return torch.tensor([[1.0, 1.0 + 2.0**-10], [1.0 + 2.0**-10, 1.0]])


@pytest.mark.parametrize(
    ("asked", "taken", "dtype"),
    [
        (0.01, 0.01, torch.float32),
        (1e-4, 1e-3, torch.float64),
        (1e-5, 1e-3, torch.float64),
        (1e-6, 1e-3, torch.float64),
        (5e-4, 5e-3, torch.float64),
    ],
)
def test_damping_grows_tenfold_until_the_hessian_factors(
    asked: float, taken: float, dtype: torch.dtype
) -> None:
    factor = factor_hessian(slightly_indefinite(), damping=asked)
    assert factor.damping == pytest.approx(taken)
    assert factor.dtype == dtype
    assert factor.upper.isfinite().all()


def test_double_precision_hessian_never_goes_down_to_single() -> None:
    factor = factor_hessian(slightly_indefinite().double(), damping=0.01)
    assert (factor.dtype, factor.upper.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize(
    ("hessian", "damping", "tried"),
    [
        (slightly_indefinite(), 1e-7, "0.0001"),
        (torch.tensor([[1.0, 50.0], [50.0, 1.0]]), 0.01, "10"),
        (-torch.eye(2), 0.01, "10"),
    ],
)
def test_indefinite_hessian_is_refused(hessian: Tensor, damping: float, tried: str) -> None:
    expected = (
        rf"the Hessian \[2, 2\] is not positive definite even in float64 with damping {tried}; "
        "use more calibration tokens or more damping"
    )
    with pytest.raises(SecateurError, match=expected):
        factor_hessian(hessian, damping)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_hessian_that_is_not_finite_is_refused(bad: float) -> None:
    hessian = torch.eye(4)
    hessian[1, 2] = bad
    with pytest.raises(SecateurError, match="expected a finite Hessian, got NaN or Inf"):
        factor_hessian(hessian)


def test_identity_hessian_moves_no_kept_weight() -> None:
    weight, _ = problem(4, 16)
    identity = torch.eye(16, dtype=torch.float64)
    factor: HessianFactor = factor_hessian(identity)
    pruned, mask = sparsegpt(weight, factor, lambda s: select_grouped(s, 2, 4), 4)
    assert torch.equal(mask, select_grouped(weight.abs(), 2, 4))
    assert torch.equal(pruned, weight.masked_fill(~mask, 0.0))
