import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import select_grouped
from secateur.mask.swap import swap_masked


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    inputs = torch.randn(200, columns, dtype=torch.float64, generator=generator)
    inputs = inputs + inputs @ mixing / columns**0.5
    return weight, inputs.T @ inputs / 100


def errors(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    pruned = weight.masked_fill(mask, 0.0)
    return (pruned @ hessian * pruned).sum(dim=1)


def best_swap(row: Tensor, hessian: Tensor, mask: Tensor, group: int) -> tuple[float, Tensor]:
    """By trying every swap and measuring its error."""
    best, chosen = float(errors(row[None], hessian, mask[None])), mask
    for leaving in range(len(row)):
        start = leaving // group * group
        for coming in range(start, start + group):
            if mask[leaving] and not mask[coming]:
                tried = mask.clone()
                tried[leaving], tried[coming] = False, True
                error = float(errors(row[None], hessian, tried[None]))
                if error < best:
                    best, chosen = error, tried
    return best, chosen


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), group=st.sampled_from([2, 4, 8, None]))
def test_each_swap_is_the_best_there_is(seed: int, group: int | None) -> None:
    weight, hessian = problem(3, 8, seed)
    start = select_grouped(weight.abs(), 2, 4) if group == 4 else select_grouped(weight.abs(), 1, 2)
    once, swaps = swap_masked(weight, hessian, start, group, max_swaps=1)
    for row in range(3):
        best, mask = best_swap(weight[row], hessian, start[row], group or 8)
        assert torch.equal(once[row], mask)
        assert float(errors(weight[row, None], hessian, once[row, None])) == pytest.approx(best)
        assert int(swaps[row]) == int(not torch.equal(mask, start[row]))


@pytest.mark.parametrize("group", [4, None])
def test_ends_where_no_swap_helps(group: int | None) -> None:
    weight, hessian = problem(5, 16)
    start = select_grouped(weight.abs(), 2, 4)
    before = start.clone()
    mask, swaps = swap_masked(weight, hessian, start, group)
    assert torch.equal(start, before)
    assert swaps.sum() > 0
    end = errors(weight, hessian, mask)
    assert (end <= errors(weight, hessian, start)).all()
    for row in range(5):
        best, _ = best_swap(weight[row], hessian, mask[row], group or 16)
        assert best == pytest.approx(float(end[row]), rel=2e-6)
    assert mask.sum(dim=1).eq(8).all()
    if group:
        assert mask.view(5, 4, 4).sum(dim=2).eq(2).all()
    again, more = swap_masked(weight, hessian, mask, group)
    assert torch.equal(again, mask)
    assert not more.any()


def test_every_further_swap_makes_the_error_smaller() -> None:
    weight, hessian = problem(4, 32)
    start = select_grouped(torch.rand(4, 32, generator=torch.Generator().manual_seed(1)), 2, 4)
    last = errors(weight, hessian, start)
    for most in range(1, 6):
        mask, swaps = swap_masked(weight, hessian, start, 4, max_swaps=most)
        now = errors(weight, hessian, mask)
        moved = swaps == most
        assert (now[moved] < last[moved]).all()
        assert torch.equal(now[~moved], last[~moved])
        last = now


def test_independent_inputs_need_no_swap_after_wanda() -> None:
    weight, _ = problem(4, 16)
    norm = torch.rand(16, dtype=torch.float64) + 0.1
    mask = select_grouped(weight.abs() * norm, 2, 4)
    swapped, swaps = swap_masked(weight, torch.diag(norm.square()), mask, 4)
    assert torch.equal(swapped, mask)
    assert not swaps.any()


def test_single_precision_ends() -> None:
    weight, hessian = problem(16, 64)
    start = select_grouped(weight.abs(), 2, 4)
    mask, _ = swap_masked(weight.float(), hessian.float(), start, 4)
    exact, _ = swap_masked(weight, hessian, start, 4)
    end = float(errors(weight, hessian, mask).sum())
    # Near ties may go either way: both are ends of a greedy search, not far apart.
    assert end == pytest.approx(float(errors(weight, hessian, exact).sum()), rel=0.02)


def test_bad_arguments_are_refused() -> None:
    weight, hessian = problem(2, 8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(SecateurError, match=r"expected hessian \[8, 8\] and keep_mask \[2, 8\]"):
        swap_masked(weight, hessian, mask[:1], 4)
    with pytest.raises(SecateurError, match="divisible by the group of 3, got 8"):
        swap_masked(weight, hessian, mask, 3)
