"""The backends of the low-rank linears behind one call each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.backends import HAS_TRITON, matmul_dtype, require_triton
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.decide import decide
from secateur_kernels.dispatch.problem import Problem
from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.low_rank import RANK_STEP
from secateur_kernels.linear_arguments import contiguous
from secateur_kernels.low_rank_linear import triton_config
from secateur_kernels.low_rank_linear.reference import low_rank, product, two_gemms
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.sparse24_linear.reference import dense_weight
from secateur_kernels.unpack24.op import unpack24_data

if HAS_TRITON:
    from secateur_kernels.low_rank_linear import triton_kernel


def choice_of(problem: Problem, x: Tensor, backend: str) -> Choice:
    """What dispatch chooses, or the backend that was named.

    Raises:
        SecateurError: the named backend is not there, or does not take these factors.
    """
    if backend == "auto":
        return decide(problem)
    config: Any = None
    if backend == "triton":
        require_triton(x)
        if x.dtype not in (torch.bfloat16, torch.float16) or problem.rank % RANK_STEP:
            raise SecateurError(
                f"expected bf16 or fp16 and a rank divisible by {RANK_STEP} for backend triton, "
                f"got {x.dtype} and rank {problem.rank}"
            )
        sizes = (problem.m, problem.n, problem.k, problem.rank)
        config = triton_config.default_config(*sizes, problem.device.num_sms)
    return Choice(backend, config, "asked for by name")


def launch(
    choice: Choice,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """y [M, output columns] for checked arguments, x [M, K] and residual with contiguous rows."""
    epilogue = (contiguous(bias), residual, activation)
    groups = tuple(group_rows)
    if choice.backend == "triton":
        factors = (down.contiguous(), up.contiguous(), groups)
        return triton_kernel.launch(x, *factors, *epilogue, choice.config)
    multiply = low_rank if choice.backend == "reference" else two_gemms
    return multiply(x, down, up, groups, *epilogue)


def launch_with_sparse(
    choice: Choice,
    x: Tensor,
    weight: Packed24,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """As `launch` with a 2:4 part added before the epilogue."""
    groups = tuple(group_rows)
    if choice.backend == "triton":
        factors = (down.contiguous(), up.contiguous(), groups)
        epilogue = (contiguous(bias), residual, activation)
        return triton_kernel.launch_with_sparse(x, weight, *factors, *epilogue, choice.config)
    if choice.backend == "unpack":
        both = x @ unpack24_data(*weight).T + product(x, down, up, groups, x.dtype)
    else:
        wide = matmul_dtype(x.dtype)
        both = x.to(wide) @ dense_weight(*weight).to(wide).T + product(x, down, up, groups, wide)
    return apply_epilogue(both, bias, residual, activation).to(x.dtype)
