"""The backends of the 2:4 linear behind one call."""

from typing import Any

from torch import Tensor

from secateur_kernels.backends import HAS_TRITON, require_cuda_tensor, require_triton
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.decide import decide
from secateur_kernels.dispatch.problem import Problem, device_facts
from secateur_kernels.errors import SecateurError
from secateur_kernels.library import require_library
from secateur_kernels.linear_arguments import contiguous
from secateur_kernels.sparse24_linear import cuda_kernels, triton_config
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.sparse24_linear.reference import dense_weight, linear, linear_of_dense
from secateur_kernels.unpack24.op import unpack24_data

if HAS_TRITON:
    from secateur_kernels.sparse24_linear import triton_kernel

BACKENDS = ("auto", "reference", "triton", "cuda", "unpack", "dense")


def problem_of(x: Tensor, rows: int, columns: int, dense_copy: bool) -> Problem:
    """The facts of a call with x [M, K]."""
    facts = device_facts(x.device)
    return Problem("sparse24_linear", len(x), rows, columns, x.dtype, facts, dense_copy=dense_copy)


def choice_of(x: Tensor, rows: int, columns: int, dense: Tensor | None, backend: str) -> Choice:
    """What dispatch chooses, or the backend that was named.

    Raises:
        SecateurError: the named backend is not there.
    """
    if backend == "auto":
        return decide(problem_of(x, rows, columns, dense is not None))
    config: Any = None
    facts = device_facts(x.device)
    if backend == "triton":
        require_triton(x)
        config = triton_config.default_config(len(x), rows, columns, facts.num_sms)
    elif backend == "cuda":
        require_cuda_tensor(x)
        require_library(x.device)
        config = cuda_kernels.default_config(len(x), rows, columns, facts.num_sms, facts.capability)
    elif backend == "dense" and dense is None:
        raise SecateurError("backend dense is not there: the caller gave no dense copy")
    return Choice(backend, config, "asked for by name")


def launch(
    choice: Choice,
    x: Tensor,
    weight: Packed24,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dense: Tensor | None,
) -> Tensor:
    """y [M, output columns] for checked arguments, x [M, K] and residual with contiguous rows."""
    if choice.backend in ("triton", "cuda"):
        kernel: Any = triton_kernel if choice.backend == "triton" else cuda_kernels
        data, rows, columns, _, _ = weight
        shape = (rows, columns, weight.gate_up)
        epilogue = (contiguous(bias), residual, activation)
        return kernel.launch(x, data, *shape, *epilogue, choice.config)  # type: ignore[no-any-return]
    if choice.backend == "dense":
        assert dense is not None
        return linear_of_dense(x, dense, bias, residual, activation)
    if choice.backend == "unpack":
        return linear_of_dense(x, unpack24_data(*weight), bias, residual, activation)
    return linear(x, dense_weight(*weight), bias, residual, activation)
