"""The backends that can serve a problem, the most promising first where nothing was measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import Problem
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.low_rank import RANK_STEP
from secateur_kernels.low_rank_linear import cuda_choice as low_rank_choice
from secateur_kernels.low_rank_linear import cuda_config as low_rank_cuda
from secateur_kernels.low_rank_linear import triton_config as low_rank_triton
from secateur_kernels.low_rank_linear.cuda_boxes import box_variants
from secateur_kernels.sparse24_linear import cuda_kernels as sparse24_cuda
from secateur_kernels.sparse24_linear import triton_config as sparse24_triton

# From here on a matrix product is bound by arithmetic, and torch's own kernel is the better one.
_FEW_TOKENS = 64
# For factors alone: at 16 tokens an H200 ran two products faster than any kernel of ours that was
# measured there, at 8 about as fast.
_FEW_FACTORED_TOKENS = 8
# Up to here the compiled low-rank kernels are bound by memory, not by what t costs them.
_LOW_RANK_TOKENS = 16

_CONFIGS: dict[tuple[str, str], Callable[..., Any]] = {
    ("sparse24_linear", "cuda"): sparse24_cuda.config_of,
    ("sparse24_linear", "triton"): sparse24_triton.Sparse24TritonConfig,
    ("low_rank_linear", "cuda"): low_rank_cuda.LowRankCudaConfig,
    ("low_rank_linear", "triton"): low_rank_triton.LowRankTritonConfig,
    ("sparse24_low_rank_linear", "cuda"): low_rank_cuda.LowRankCudaConfig,
    ("sparse24_low_rank_linear", "triton"): low_rank_triton.LowRankTritonConfig,
}


def config_from(op: str, backend: str, fields: Mapping[str, int | str] | None) -> Any:
    """A backend's config from its fields, as a table keeps it; None where it has none.

    Raises:
        SecateurError: the backend has no config of such fields.
    """
    if fields is None:
        return None
    try:
        return _CONFIGS[op, backend](**fields)
    except (KeyError, TypeError) as error:
        raise SecateurError(f"expected a config of {backend} for {op}, got {fields}") from error


def candidates(problem: Problem) -> list[Choice]:
    """What can serve the problem on its device, each with its default config.

    The order is the rule of thumb for problems that were not measured.
    """
    if not problem.device.is_gpu:
        return _on_cpu(problem)
    if problem.op == "sparse24_linear":
        return _sparse24(problem)
    cuda, triton = _low_rank_cuda(problem), _low_rank_triton(problem)
    # Two products, or three with the sparse part unpacked first.
    products = Choice("unpack" if problem.op == "sparse24_low_rank_linear" else "two_gemms")
    named = Choice(products.backend, reason="arithmetic decides")
    ours = [*cuda, *triton] if problem.m <= _LOW_RANK_TOKENS else [*triton, *cuda]
    few = _FEW_TOKENS if problem.op == "sparse24_low_rank_linear" else _FEW_FACTORED_TOKENS
    return [*ours, named] if problem.m <= few else [named, *ours]


def candidates_to_tune(problem: Problem) -> list[Choice]:
    """What `secateur tune` times first: every candidate, those with configs in several."""
    several: list[Choice] = []
    for choice in candidates(problem):
        configs = configs_to_tune(problem, choice.backend) or [choice.config]
        several += [Choice(choice.backend, config, choice.reason) for config in configs]
    return several


def variants_to_tune(problem: Problem, choice: Choice) -> list[Choice]:
    """What `secateur tune` times then: variants of the fastest, if it is a compiled kernel."""
    if choice.backend != "cuda":
        return []
    device = problem.device
    configs: Sequence[Any]
    if problem.op == "sparse24_linear":
        sizes = (problem.m, problem.n, problem.k)
        configs = sparse24_cuda.variants(choice.config, *sizes, device.num_sms, device.capability)
    else:
        configs = box_variants(choice.config, low_rank_shape(problem), device.num_sms)
    return [replace(choice, config=config) for config in configs]


def _on_cpu(problem: Problem) -> list[Choice]:
    if problem.op == "low_rank_linear":
        return [
            Choice("two_gemms", reason="a CPU has no kernel of ours"),
            Choice("reference", reason="the intermediate stays in fp32"),
        ]
    choices = [Choice("reference", reason="a CPU has no kernel of ours")]
    if problem.dense_copy:
        choices.insert(0, Choice("dense", reason="the kept dense copy, on a CPU"))
    return choices


def _sparse24(problem: Problem) -> list[Choice]:
    device, m, n, k = problem.device, problem.m, problem.n, problem.k
    choices: list[Choice] = []
    if device.has_library and sparse24_cuda.supports(m, n, k, device.capability):
        by_library = sparse24_cuda.default_config(m, n, k, device.num_sms, device.capability)
        choices.append(Choice("cuda", by_library, "the weight is streamed once"))
    triton: list[Choice] = []
    if device.has_triton:
        config = sparse24_triton.default_config(m, n, k, device.num_sms)
        triton.append(Choice("triton", config, "the weight is streamed once"))
    products = [Choice("unpack", reason="arithmetic decides")]
    if problem.dense_copy:
        products.insert(0, Choice("dense", reason="the kept dense copy"))
    return [*choices, *triton, *products] if m <= _FEW_TOKENS else [*choices, *products, *triton]


def low_rank_shape(problem: Problem) -> low_rank_cuda.LowRankShape:
    """What the compiled low-rank kernels divide."""
    sparse = problem.op == "sparse24_low_rank_linear"
    sizes = (problem.m, problem.n, problem.k, problem.rank, problem.groups)
    return low_rank_cuda.LowRankShape(*sizes, sparse)


def _low_rank_cuda(problem: Problem) -> list[Choice]:
    device, shape = problem.device, low_rank_shape(problem)
    fits = problem.dtype in (torch.bfloat16, torch.float16)
    if not (device.has_library and fits and low_rank_cuda.supports(shape, device.capability)):
        return []
    config = low_rank_choice.default_config(shape, device.num_sms, device.capability)
    return [Choice("cuda", config, "the factors are streamed once")]


def _low_rank_triton(problem: Problem) -> list[Choice]:
    fits = problem.dtype in (torch.bfloat16, torch.float16) and problem.rank % RANK_STEP == 0
    if not (problem.device.has_triton and fits):
        return []
    config = low_rank_triton.default_config(
        problem.m, problem.n, problem.k, problem.rank, problem.device.num_sms
    )
    return [Choice("triton", config, "the factors are streamed once")]


def configs_to_tune(problem: Problem, backend: str) -> Sequence[Any]:
    """What is worth timing of a backend that is a candidate; nothing where it has no configs."""
    m, n, k = problem.m, problem.n, problem.k
    device = problem.device
    if backend == "cuda" and problem.op != "sparse24_linear":
        shape = low_rank_shape(problem)
        return low_rank_choice.candidate_configs(shape, device.num_sms, device.capability)
    if backend == "cuda":
        return sparse24_cuda.candidate_configs(m, n, k, device.num_sms, device.capability)
    if backend == "triton" and problem.op == "sparse24_linear":
        return sparse24_triton.candidate_configs(m, n, k)
    if backend == "triton":
        return low_rank_triton.candidate_configs(m, n, k, problem.rank)
    return []
