"""`secateur::unpack24`: the public function, schema, checks and fake."""

import torch
from torch import Tensor

from secateur_kernels.backends import (
    HAS_TRITON,
    Backend,
    check_backend,
    require_cuda_tensor,
    require_triton,
)
from secateur_kernels.layouts.fragment24 import Fragment24, check_data
from secateur_kernels.layouts.kind import kind_of
from secateur_kernels.layouts.require import require_layout
from secateur_kernels.namespace import LIBRARY
from secateur_kernels.unpack24 import cuda_kernel, reference

if HAS_TRITON:
    from secateur_kernels.unpack24 import triton_kernel

BACKENDS = ("auto", "reference", "triton", "cuda")

LIBRARY.define(
    "unpack24(Tensor data, int rows, int columns, str row_order, ScalarType value_dtype, "
    "str backend) -> Tensor"
)


def unpack24(fragment: Fragment24, backend: Backend = "auto") -> Tensor:
    """The dense weight [N, K], in the order of its rows before packing.

    Kept values come back bit for bit; everywhere else is +0.0. Reads 1.125 bytes a weight and
    writes 2, so that it pays beside a matrix product with thousands of tokens.

    Args:
        fragment: packed [N, K].
        backend: `auto`: Triton on a GPU, plain torch on a CPU. Another name is used or refused.

    Raises:
        SecateurError: the weight has another layout; the backend is not there.
    """
    require_layout(fragment, Fragment24)
    return torch.ops.secateur.unpack24(  # type: ignore[no-any-return]
        fragment.data, *fragment.shape, fragment.row_order, fragment.kind.value_dtype, backend
    )


def unpack24_data(
    data: Tensor,
    rows: int,
    columns: int,
    row_order: str,
    value_dtype: torch.dtype,
    backend: str = "auto",
) -> Tensor:
    """As `unpack24`, for the fields of a `Fragment24` whose index pairs were checked before.

    Raises:
        SecateurError: the bytes do not fit the shape; the backend is not there.
    """
    check_backend(backend, BACKENDS)
    check_data(data, (rows, columns), row_order)
    kind_of(value_dtype)
    if backend == "auto":
        backend = "triton" if data.device.type == "cuda" else "reference"
    if backend == "triton":
        require_triton(data)
    elif backend == "cuda":
        require_cuda_tensor(data)
    if data.numel() == 0 or backend == "reference":
        return reference.run(data, rows, columns, row_order, value_dtype)
    launch = triton_kernel.launch if backend == "triton" else cuda_kernel.launch
    return launch(data, rows, columns, row_order == "gate_up", value_dtype)


def _fake(
    data: Tensor, rows: int, columns: int, row_order: str, value_dtype: torch.dtype, backend: str
) -> Tensor:
    return data.new_empty((rows, columns), dtype=value_dtype)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("unpack24", unpack24_data, _device)
torch.library.register_fake("secateur::unpack24", _fake, lib=LIBRARY)
