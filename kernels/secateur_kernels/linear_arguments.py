"""What every linear op checks about x, bias and residual, in one place and one wording."""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur_kernels.epilogue import output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import dtype_name


def check_linear(
    x: Tensor,
    rows: int,
    columns: int,
    dtypes: Sequence[torch.dtype],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> int:
    """Check x [..., K], bias [N] and residual [..., output columns] against a weight [N, K].

    Args:
        x: the input.
        rows: N.
        columns: K.
        dtypes: what x may be.
        bias: dtype and device of x, or None.
        residual: dtype and device of x, or None.
        activation: of the epilogue.

    Returns:
        the number of output columns.

    Raises:
        SecateurError: what was expected and what came.
    """
    if x.dtype not in dtypes:
        known = " or ".join(dtype_name(dtype) for dtype in dtypes)
        raise SecateurError(f"expected x of dtype {known}, got {dtype_name(x.dtype)}")
    if x.ndim < 1 or x.shape[-1] != columns:
        raise SecateurError(
            f"expected x [..., {columns}] for a weight [{rows}, {columns}], got {list(x.shape)}"
        )
    out = output_columns(rows, activation)
    _check_like(x, bias, "bias", [rows])
    _check_like(x, residual, "residual", [*x.shape[:-1], out])
    return out


def check_device(x: Tensor, **tensors: Tensor | None) -> None:
    """Raise SecateurError where a tensor is not on the device of x."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise SecateurError(f"expected {name} on {x.device} as x, got {tensor.device}")


def _check_like(x: Tensor, tensor: Tensor | None, name: str, shape: list[int]) -> None:
    if tensor is None:
        return
    if list(tensor.shape) != shape or tensor.dtype != x.dtype:
        raise SecateurError(
            f"expected {name} {dtype_name(x.dtype)} {shape}, "
            f"got {dtype_name(tensor.dtype)} {list(tensor.shape)}"
        )
    check_device(x, **{name: tensor})


def as_matrix(x: Tensor) -> Tensor:
    """[M, K] with contiguous rows, a view where x allows it."""
    matrix = x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x
    return matrix if matrix.stride(-1) == 1 or matrix.numel() == 0 else matrix.contiguous()


def rows_of(x: Tensor) -> Tensor:
    """[M, K] from [..., K], also where K is 0; a vector is one row."""
    rows: Tensor = torch.atleast_2d(x)
    return rows.flatten(0, -2)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor as kernels read it, copied where it is strided."""
    return None if tensor is None else tensor.contiguous()


def with_aligned_rows(x: Tensor) -> Tensor:
    """The same numbers as kernels for many tokens read them.

    Args:
        x: [M, K] of 16-bit values.

    Returns:
        x itself if its rows are contiguous, do not overlap (a map of the tensor memory accelerator
        cannot say that) and start at multiples of 16 bytes, else a copy whose rows are K rounded up
        to 8 elements apart.
    """
    tokens, columns = x.shape
    step = 16 // x.element_size()
    apart = tokens == 1 or (x.stride(0) % step == 0 and x.stride(0) >= columns)
    if x.stride(1) == 1 and apart and x.data_ptr() % 16 == 0:
        return x
    stride = columns + -columns % step
    aligned = torch.empty(tokens, stride, dtype=x.dtype, device=x.device)[:, :columns]
    return aligned.copy_(x)
