"""The backends of both low-rank linears behind one call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.backends import (
    HAS_TRITON,
    require_cuda_tensor,
    require_triton,
)
from secateur_kernels.dispatch.candidates import low_rank_shape
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.decide import decide
from secateur_kernels.dispatch.problem import Problem
from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.low_rank import RANK_STEP
from secateur_kernels.library import require_library
from secateur_kernels.linear_arguments import contiguous
from secateur_kernels.low_rank_linear import cuda_kernel, triton_config
from secateur_kernels.low_rank_linear.reference import low_rank, product, two_gemms
from secateur_kernels.precision import wide_dtype
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.sparse24_linear.reference import dense_weight
from secateur_kernels.unpack24.op import unpack24_data

if HAS_TRITON:
    from secateur_kernels.low_rank_linear import triton_kernel


def choice_of(problem: Problem, x: Tensor, backend: str, library_fits: bool = True) -> Choice:
    """What dispatch chooses, or the backend that was named.

    Args:
        problem: the facts of the call.
        x: for its device and dtype.
        backend: `auto`, or a name.
        library_fits: whether the compiled kernels can put the groups' rows together.

    Raises:
        SecateurError: the named backend is not there, or does not take these factors.
    """
    if backend == "auto":
        return choose_for(problem, library_fits)
    config: Any = None
    if backend == "triton":
        require_triton(x)
        _check_instructions(problem, x, backend)
        sizes = (problem.m, problem.n, problem.k, problem.rank)
        config = triton_config.default_config(*sizes, problem.device.num_sms)
    elif backend == "cuda":
        require_cuda_tensor(x)
        require_library(x.device)
        _check_instructions(problem, x, backend)
        config = _cuda_config(problem)
    return Choice(backend, config, "asked for by name")


def choose_for(problem: Problem, library_fits: bool) -> Choice:
    """What dispatch chooses, without the compiled library where it does not fit."""
    if not library_fits:
        problem = replace(problem, device=replace(problem.device, has_library=False))
    return decide(problem)


def _check_instructions(problem: Problem, x: Tensor, backend: str) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16) or problem.rank % RANK_STEP:
        raise SecateurError(
            f"expected bf16 or fp16 and a rank divisible by {RANK_STEP} for backend {backend}, "
            f"got {x.dtype} and rank {problem.rank}"
        )


def _cuda_config(problem: Problem) -> cuda_kernel.LowRankCudaConfig:
    shape, device = low_rank_shape(problem), problem.device
    if not cuda_kernel.supports(shape, device.capability):
        raise SecateurError(
            f"expected 1 to 64 tokens, 1 to 8 groups, and tokens * rank that fit into shared "
            f"memory for backend cuda, got {problem}"
        )
    return cuda_kernel.default_config(shape, device.num_sms, device.capability)


def launch(
    choice: Choice,
    x: Tensor,
    weight: Packed24 | None,
    down: Tensor,
    up: Tensor,
    group_rows: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """y [M, output columns] for checked arguments, x [M, K] and residual with contiguous rows.

    `weight`: a 2:4 part that is added before the epilogue, or None.
    """
    groups = tuple(group_rows)
    epilogue = (contiguous(bias), residual, activation)
    if choice.backend == "cuda":
        return cuda_kernel.launch(x, weight, down, up, groups, *epilogue, choice.config)
    if choice.backend == "triton":
        factors = (down.contiguous(), up.contiguous(), groups)
        return triton_kernel.launch(x, weight, *factors, *epilogue, choice.config)
    if weight is None:
        multiply = low_rank if choice.backend == "reference" else two_gemms
        return multiply(x, down, up, groups, *epilogue)
    if choice.backend == "unpack":
        both = x @ unpack24_data(*weight).T + product(x, down, up, groups, x.dtype)
    else:
        wide = wide_dtype(x.dtype)
        both = x.to(wide) @ dense_weight(*weight).to(wide).T + product(x, down, up, groups, wide)
    return apply_epilogue(both, *epilogue).to(x.dtype)
