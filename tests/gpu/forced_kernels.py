"""The kernels behind backend `cuda` one by one, whichever of them dispatch would take.

Tests name one as a backend of its own, `cuda-tiles` say. Calls go through the op as always: only
its choice is replaced. A kernel that is added to the table is tested wherever backends are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import device_facts
from secateur_kernels.sparse24_linear import op as sparse24_op
from secateur_kernels.sparse24_linear.cuda_kernels import KERNELS, CudaKernel, variants

_PREFIX = "cuda-"


FORCED = tuple(_PREFIX + name for name in KERNELS)
"""The names under which tests know them as backends."""


def is_forced(backend: str) -> bool:
    """Whether a backend's name is that of one kernel of backend `cuda`."""
    return backend.startswith(_PREFIX)


def kernel_of(backend: str) -> CudaKernel:
    """The kernel that a backend's name forces."""
    return KERNELS[backend.removeprefix(_PREFIX)]


def supported(backend: str, m: int, n: int, k: int, device: torch.device) -> bool:
    """Whether a forced kernel takes x [m, k] and a weight [n, k]."""
    return kernel_of(backend).supports(m, n, k, device_facts(device).capability)


def configs(backend: str, m: int, n: int, k: int, device: torch.device) -> list[Any]:
    """What tuning would time of a forced kernel."""
    facts = device_facts(device)
    sizes = (m, n, k, facts.num_sms, facts.capability)
    candidates = kernel_of(backend).candidate_configs(*sizes)
    return [*candidates, *variants(candidates[0], *sizes)]


@contextmanager
def forced(backend: str, config: Any = None) -> Iterator[None]:
    """Calls of sparse24_linear with backend `cuda` run one kernel.

    Args:
        backend: one of `FORCED`.
        config: of the kernel; None is its default for each call.
    """
    kernel = kernel_of(backend)

    def choose(x: Tensor, rows: int, columns: int, dense: Tensor | None, named: str) -> Choice:
        assert named == "cuda", f"expected backend cuda while a kernel is forced, got {named}"
        facts = device_facts(x.device)
        device = (facts.num_sms, facts.capability)
        chosen = config or kernel.default_config(len(x), rows, columns, *device)
        return Choice("cuda", chosen, f"forced by a test: {backend}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse24_op, "choice_of", choose)
        yield


@contextmanager
def reached_by(backend: str) -> Iterator[str]:
    """The name to call the op with so that a backend serves it, while the context lasts.

    A call that is compiled goes inside: what a traced function replaces, it puts back before the
    graph runs.
    """
    if not is_forced(backend):
        yield backend
        return
    with forced(backend):
        yield "cuda"
