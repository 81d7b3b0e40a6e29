"""Every way to compute one linear layer, ready to be timed against each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import cusparselt
from bench.linear_operands import LOW_RANK, SPARSE, Operands
from bench.linear_tries import Tries
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import DeviceFacts, device_facts
from secateur_kernels.low_rank_linear import op as low_rank_op
from secateur_kernels.sparse24_linear import cuda_kernels
from secateur_kernels.sparse24_linear import launch as sparse24_launch
from secateur_kernels.sparse24_linear import op as sparse24_op
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.testing.attempts import Attempts

# `kernels`: each compiled kernel under its own name, with the config that it takes by default.
OURS = {
    SPARSE: ("auto", "cuda", "kernels", "triton", "unpack"),
    LOW_RANK: ("auto", "cuda", "triton"),
}
Step = Callable[[Tensor, int], Tensor]
"""x [M, K] and the index of the weight's copy to y [M, N]."""


@dataclass
class Candidates:
    """Steps by name, and what was chosen or failed."""

    steps: dict[str, Step] = field(default_factory=dict)
    isolated: dict[str, Callable[[int], object]] = field(default_factory=dict)
    """Calls that cannot be chained."""
    notes: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    """Name -> the kernel of ours that it runs, where that is not the name."""


def candidates_for(
    operands: Operands,
    x: Tensor,
    with_competitors: bool = True,
    ours: Sequence[str] | None = None,
    tries: Tries | None = None,
) -> Candidates:
    """All that can run here, each tried once; what fails is noted with its reason.

    Args:
        operands: of the layer.
        x: [M, K].
        with_competitors: cuSPARSELt as well.
        ours: of `OURS`, those wanted; all by default.
        tries: of the job, where what killed a process is left out.
    """
    tries = tries or Tries(Attempts(None), "", x.device)
    found = Candidates(_torch_steps(operands, x.device))
    for name in OURS[operands.op]:
        if ours is None or name in ours:
            _add_ours(found, operands, x, name)
    if with_competitors and operands.compressed:
        _add_cusparselt(found, operands, x, tries)
    elif operands.op == SPARSE:
        found.notes["cusparselt"] = cusparselt.why_not(x.device) or "not asked for"
    _drop_what_fails(found, x, tries)
    return found


def _add_cusparselt(found: Candidates, operands: Operands, x: Tensor, tries: Tries) -> None:
    name = "cusparselt"

    def search() -> None:
        calls, notes = cusparselt.candidates(operands.compressed, x)
        found.isolated |= calls
        found.notes |= notes

    # It times dozens of algorithms in several divisions of K.
    tries.runs(name, name, search, found.notes, "search", longer=4)


def _torch_steps(operands: Operands, device: torch.device) -> dict[str, Step]:
    """The dense product, and for factors two products, by each of torch's libraries."""
    dense, factors = operands.dense, operands.factors

    def one(x: Tensor, index: int) -> Tensor:
        return F.linear(x, dense[index % len(dense)])

    def two(x: Tensor, index: int) -> Tensor:
        part = factors[index % len(factors)]
        return F.linear(F.linear(x, part.down), part.up)

    steps: dict[str, Step] = {"dense": one}
    if factors:
        steps["two products"] = two
    if device.type != "cuda":
        return steps
    return {
        f"{name} {library}": _by_library(step, library)
        for name, step in steps.items()
        for library in ("cublas", "cublaslt")
    }


def _by_library(step: Step, library: str) -> Step:
    def chosen(x: Tensor, index: int) -> Tensor:
        # What is captured is what this chose; the setting itself costs nothing on the device.
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library(library)
        try:
            return step(x, index)
        finally:
            torch.backends.cuda.preferred_blas_library(before)

    return chosen


def _add_ours(found: Candidates, operands: Operands, x: Tensor, name: str) -> None:
    if name != "kernels":
        found.steps[f"ours {name}"] = _our_step(operands, name)
        if name == "auto":
            choice = _explained(operands, x)
            found.notes["ours auto"] = str(choice)
            found.kernels["ours auto"] = _kernel_of(operands, choice)
        elif name == "cuda":
            found.kernels["ours cuda"] = _compiled_by_default(operands, x)
        return
    for kernel, choice in kernels_for(operands, x).items():
        found.steps[f"ours {kernel}"] = _kernel_step(operands, choice)
        found.notes[f"ours {kernel}"] = str(choice)
        found.kernels[f"ours {kernel}"] = _kernel_of(operands, choice)


def _kernel_of(operands: Operands, choice: Choice) -> str:
    kernel = getattr(choice.config, "kernel", "")
    return f"{operands.op} {choice.backend} {kernel}".rstrip()


def _compiled_by_default(operands: Operands, x: Tensor) -> str:
    names = kernels_for(operands, x) if operands.op == SPARSE else {}
    return f"{operands.op} cuda {next(iter(names), '')}".rstrip()


def kernels_for(operands: Operands, x: Tensor) -> dict[str, Choice]:
    """The compiled 2:4 kernels that take x, also those that dispatch would not time: name -> the
    config that each takes where nothing was measured."""
    n, k = operands.shape.size
    device = device_facts(x.device)
    if not device.has_library:
        return {}
    return {
        name: Choice("cuda", _default_config(name, len(x), n, k, device), "by name")
        for name in cuda_kernels.kernels_for(len(x), n, k, device.capability)
    }


def _default_config(name: str, m: int, n: int, k: int, device: DeviceFacts) -> Any:
    kernel = cuda_kernels.KERNELS[name]
    return kernel.default_config(m, n, k, device.num_sms, device.capability)


def _kernel_step(operands: Operands, choice: Choice) -> Step:
    packed = tuple(Packed24.of(weight) for weight in operands.packed)
    return lambda x, index: sparse24_launch.launch(
        choice, x, packed[index % len(packed)], None, None, "none", None
    )


def _our_step(operands: Operands, backend: str) -> Step:
    named: Any = backend
    if operands.op == SPARSE:
        packed = operands.packed
        return lambda x, index: sparse24_op.sparse24_linear(
            x, packed[index % len(packed)], backend=named
        )
    factors = operands.factors
    return lambda x, index: low_rank_op.low_rank_linear(
        x, factors[index % len(factors)], backend=named
    )


def _explained(operands: Operands, x: Tensor) -> Choice:
    if operands.op == SPARSE:
        return sparse24_op.explain(x, operands.packed[0])
    return low_rank_op.explain(x, operands.factors[0])


def _drop_what_fails(found: Candidates, x: Tensor, tries: Tries) -> None:
    def runs(name: str, call: Callable[[], object]) -> bool:
        return tries.runs(name, found.kernels.get(name, name), call, found.notes, "a first call")

    for name, step in list(found.steps.items()):
        if not runs(name, lambda step=step: step(x, 0)):  # type: ignore[misc]
            del found.steps[name]
    for name, call in list(found.isolated.items()):
        if not runs(name, lambda call=call: call(0)):  # type: ignore[misc]
            del found.isolated[name]
