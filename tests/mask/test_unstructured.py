from fractions import Fraction
from math import floor
from typing import Any, get_args

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import select_unstructured
from secateur.mask.unstructured import Compared

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FRACTIONS = ["0", "1e-12", "0.001", "0.1", "0.25", "0.29", "0.3", "0.5", "0.57", "0.6", "0.7"]
FRACTIONS += ["0.75", "0.8", "0.9", "0.999"]
VALUES = [-1.0, 0.0, -0.0, 0.0, 1.0, 2.0, 6e-8, -6e-8, 60000.0, -60000.0]
"""Subnormal and nearly the largest in fp16, and many ties."""

Place = tuple[int, int]


def comparison_groups(rows: int, columns: int, compared: str, width: int) -> list[list[Place]]:
    if compared == "row":
        return [[(row, column) for column in range(columns)] for row in range(rows)]
    width = columns if compared == "matrix" else width
    return [
        [
            (row, column)
            for row in range(rows)
            for column in range(start, min(start + width, columns))
        ]
        for start in range(0, columns, width)
    ]


def expected_mask(score: Tensor, fraction: str, compared: str, width: int) -> Tensor:
    """Sort each comparison group by (score descending, column, row) and keep the first ones."""
    values = score.tolist()
    mask = torch.zeros(score.shape, dtype=torch.bool)
    rows, columns = score.shape
    for places in comparison_groups(rows, columns, compared, width):
        places.sort(key=lambda place: (-values[place[0]][place[1]], place[1], place[0]))
        # The fraction as it is written, so that 0.7 of 10 is 7 in whole numbers.
        removed = floor(Fraction(fraction) * len(places))
        for place in places[: len(places) - removed]:
            mask[place] = True
    return mask


def without_ties(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(rows * columns, generator=generator)
    return order.view(rows, columns).float() + 1


@settings(deadline=None, max_examples=300)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 13),
    fraction=st.sampled_from(FRACTIONS),
    compared=st.sampled_from(get_args(Compared)),
    width=st.integers(1, 15),
    dtype=st.sampled_from(DTYPES),
    transposed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_mask_is_that_of_sorting_every_comparison_group(
    rows: int,
    columns: int,
    fraction: str,
    compared: Compared,
    width: int,
    dtype: torch.dtype,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(VALUES), (rows, columns), generator=generator)
    score = torch.tensor(VALUES, dtype=torch.float64).to(dtype)[picks]
    if transposed:
        score = score.T.contiguous().T
    before = score.clone()
    mask = select_unstructured(score, float(fraction), compared, width)
    assert (mask.shape, mask.dtype) == (score.shape, torch.bool)
    assert torch.equal(mask, expected_mask(score, fraction, compared, width))
    assert torch.equal(score, before)


@pytest.mark.parametrize("compared", get_args(Compared))
def test_larger_matrix_with_many_ties(compared: Compared) -> None:
    generator = torch.Generator().manual_seed(4)
    score = torch.randint(50, (61, 203), generator=generator).float()
    mask = select_unstructured(score, 0.6, compared, 64)
    expected = numpy.zeros(score.shape, dtype=bool)
    for places in comparison_groups(61, 203, compared, 64):
        rows, columns = numpy.array(places).T
        order = numpy.lexsort((rows, columns, -score.numpy()[rows, columns]))
        kept = order[: len(places) - len(places) * 6 // 10]
        expected[rows[kept], columns[kept]] = True
    assert (mask.numpy() == expected).all()


def test_last_block_is_narrower() -> None:
    score = torch.arange(10.0).repeat(2, 1)
    mask = select_unstructured(score, 0.5, "block", 4)
    # Blocks of 4, 4 and 2 columns, and half of each goes.
    row = [False, False, True, True] * 2 + [False, True]
    assert mask.tolist() == [row, row]


def test_block_is_128_columns_unless_said() -> None:
    score = torch.arange(300.0).view(1, -1)
    mask = select_unstructured(score, 0.5, "block")
    assert mask.split(128, dim=1)[0].sum() == 64
    assert torch.equal(mask, select_unstructured(score, 0.5, "block", 128))
    assert torch.equal(
        select_unstructured(score, 0.5, "block", 1000), select_unstructured(score, 0.5, "matrix")
    )


def test_ties_keep_the_lower_column_then_the_lower_row() -> None:
    score = torch.ones(3, 4)
    rows = select_unstructured(score, 0.5, "row")
    assert rows.tolist() == [[True, True, False, False]] * 3
    matrix = select_unstructured(score, 5 / 12, "matrix")  # 7 stay: columns 0 and 1, then row 0
    assert matrix.tolist() == [[True, True, True, False], *[[True, True, False, False]] * 2]
    blocks = select_unstructured(score, 0.5, "block", 2)
    assert blocks.tolist() == [[True, False, True, False]] * 3


def test_negative_zero_ties_with_zero() -> None:
    score = torch.tensor([[0.0, -0.0, -0.0, 0.0], [-0.0, 0.0, 0.0, -0.0]])
    for compared in get_args(Compared):
        mask = select_unstructured(score, 0.5, compared, 4)
        assert mask.tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize(
    ("fraction", "columns", "removed"),
    [
        *[(0.7, 10, 7), (0.29, 100, 29), (0.57, 100, 57), (0.1, 30, 3), (0.999, 1000, 999)],
        *[(0.999, 999, 998), (0.999, 1, 0), (0.5, 1, 0), (0.5, 7, 3), (1e-9, 50, 0)],
        *[(0.3, 10, 3), (0.6, 5, 3), (1 / 3, 3, 1), (0.35, 40, 14), (0.5 - 1e-6, 2, 0)],
        (0.0, 9, 0),
    ],
)
def test_rounding_down_of_the_fraction(fraction: float, columns: int, removed: int) -> None:
    score = torch.arange(float(columns)).view(1, -1)
    mask = select_unstructured(score, fraction, "row")
    assert mask.tolist() == [[False] * removed + [True] * (columns - removed)]


@pytest.mark.parametrize("compared", get_args(Compared))
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
def test_nothing_to_choose_from(shape: tuple[int, int], compared: Compared) -> None:
    mask = select_unstructured(torch.zeros(shape), 0.5, compared, 3)
    assert (mask.shape, mask.dtype) == (shape, torch.bool)


def test_one_row_and_one_column() -> None:
    line = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    for compared in get_args(Compared):
        row = select_unstructured(line, 0.5, compared, 4)
        assert row.tolist() == [[True, False, True, False]]
    assert select_unstructured(line.T, 0.5, "row").all()
    for wide in ("matrix", "block"):
        column = select_unstructured(line.T, 0.5, wide, 1)
        assert column.flatten().tolist() == [True, False, True, False]


def test_published_row_rule_without_ties_and_its_opposite_tie_rule() -> None:
    def published(metric: Tensor) -> Tensor:
        """Wanda: a stable ascending sort of each row, of which the first half goes."""
        indices = torch.sort(metric, dim=-1, stable=True).indices
        pruned = torch.zeros_like(metric, dtype=torch.bool)
        return ~pruned.scatter_(1, indices[:, : int(metric.shape[1] * 0.5)], True)

    distinct = without_ties(16, 37)
    assert torch.equal(select_unstructured(distinct, 0.5, "row"), published(distinct))
    tied = distinct % 3
    mask = select_unstructured(tied, 0.5, "row")
    assert not torch.equal(mask, published(tied))
    assert torch.equal(mask, published(tied.flip(1)).flip(1))


@pytest.mark.parametrize("width", [37, 16])
def test_published_threshold_removes_one_more(width: int) -> None:
    """Magnitude over a matrix and SparseGPT over a block remove all up to a threshold, itself
    included; exactly as many as asked for go here.
    """
    score = without_ties(16, 37)
    ours = select_unstructured(score, 0.5, "block", width)
    for part, mask in zip(score.split(width, dim=1), ours.split(width, dim=1), strict=True):
        threshold = part.flatten().sort().values[int(part.numel() * 0.5)]
        published = part > threshold
        assert not (published & ~mask).any()
        assert part[mask & ~published].tolist() == [threshold.item()]


@pytest.mark.parametrize("fraction", [-0.1, -1e-12, 1.0, 1.5, float("nan"), float("inf")])
def test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(SecateurError, match=f"expected 0 <= fraction < 1, got {fraction}"):
        select_unstructured(torch.zeros(2, 2), fraction, "row")


@pytest.mark.parametrize("compared", ["column", "", None])
def test_unknown_comparison_group_is_refused(compared: Any) -> None:
    message = f"expected comparison group row, matrix or block, got {compared!r}"
    with pytest.raises(SecateurError, match=message):
        select_unstructured(torch.zeros(2, 2), 0.5, compared)
