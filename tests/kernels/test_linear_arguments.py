"""What every linear op asks of its tensors; other devices stand in for a GPU here."""

import pytest
import torch
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.linear_arguments import (
    as_matrix,
    check_device,
    check_linear,
    rows_of,
    with_aligned_rows,
)

X = torch.ones(3, 8)
AWAY = torch.device("meta")


def test_tensors_on_another_device_are_refused() -> None:
    with pytest.raises(SecateurError, match="expected weight on cpu as x, got meta"):
        check_device(X, weight=torch.ones(4, 8, device=AWAY))
    bias, residual = torch.ones(4, device=AWAY), torch.ones(3, 4, device=AWAY)
    with pytest.raises(SecateurError, match="expected bias on cpu as x, got meta"):
        check_linear(X, 4, 8, (torch.float32,), bias, None, "none")
    with pytest.raises(SecateurError, match="expected residual on cpu as x, got meta"):
        check_linear(X, 4, 8, (torch.float32,), None, residual, "none")


def test_rows_become_contiguous_and_nothing_more_is_copied() -> None:
    wide = torch.ones(3, 4, 10)
    assert as_matrix(wide[..., :8]).shape == (12, 8)
    sliced = torch.ones(5, 10)[:, :8]
    assert as_matrix(sliced).data_ptr() == sliced.data_ptr()
    assert as_matrix(torch.ones(8, 5).T).stride() == (8, 1)


def test_rows_of_any_input() -> None:
    assert rows_of(torch.ones(2, 3, 8)).shape == (6, 8)
    assert rows_of(torch.ones(8)).shape == (1, 8)
    assert rows_of(torch.ones(2, 3, 0)).shape == (6, 0)


def test_output_columns() -> None:
    assert check_linear(X, 4, 8, (torch.float32,), None, None, "silu_and_mul") == 2
    with pytest.raises(SecateurError, match=r"as many up rows as gate rows .* got 5 rows"):
        check_linear(X, 5, 8, (torch.float32,), None, None, "silu_and_mul")


def matrix(rows: int, columns: int) -> Tensor:
    return torch.arange(rows * columns, dtype=torch.float32).view(rows, columns).bfloat16()


def test_rows_that_fit_are_not_copied() -> None:
    x = matrix(4, 64)
    assert with_aligned_rows(x) is x
    part = matrix(4, 128)[:, :72]
    assert with_aligned_rows(part) is part
    # The stride of a single row says nothing.
    single = matrix(1, 20)
    assert with_aligned_rows(single) is single


@pytest.mark.parametrize(
    "x",
    [
        matrix(4, 68),
        matrix(4, 72)[:, 4:68],
        matrix(64, 4).T,
        matrix(1, 64).expand(3, 64),
        matrix(1, 80).as_strided((3, 64), (8, 1)),
    ],
    ids=["odd stride", "odd start", "columns apart", "the same row", "rows that overlap"],
)
def test_rows_that_do_not_fit_are_copied(x: Tensor) -> None:
    copied = with_aligned_rows(x)
    assert torch.equal(copied, x)
    assert copied.data_ptr() % 16 == 0
    assert copied.stride(1) == 1
    assert copied.stride(0) % 8 == 0
    assert copied.stride(0) >= x.shape[1]
