"""What the launch of the kernel for warpgroups does before the library is asked."""

import pytest
import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.linear_arguments import with_aligned_rows
from secateur_kernels.sparse24_linear.cuda_wide import default_config, launch


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


def test_a_cpu_is_refused() -> None:
    x, data = matrix(2, 64), torch.zeros(1, 1, 4608, dtype=torch.uint8)
    config = default_config(2, 64, 64, 132)
    with pytest.raises(SecateurError, match="compiled library"):
        launch(x, data, 64, 64, False, None, None, "none", config)
