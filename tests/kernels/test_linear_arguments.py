"""What every linear op asks of its tensors; other devices stand in for a GPU here."""

import pytest
import torch

from secateur_kernels import SecateurError
from secateur_kernels.linear_arguments import as_matrix, check_device, check_linear

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


def test_output_columns() -> None:
    assert check_linear(X, 4, 8, (torch.float32,), None, None, "silu_and_mul") == 2
    with pytest.raises(SecateurError, match=r"as many up rows as gate rows .* got 5 rows"):
        check_linear(X, 5, 8, (torch.float32,), None, None, "silu_and_mul")
