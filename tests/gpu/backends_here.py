"""Which backends of an op can run on a device, and why one cannot."""

import gc

import pytest
import torch
from gpu.forced_kernels import is_forced, supported
from gpu.layers import BACKENDS

from secateur_kernels.backends import HAS_TRITON
from secateur_kernels.dispatch.problem import device_facts


def why_not(backend: str, device: torch.device) -> str | None:
    """None where the backend is there."""
    facts = device_facts(device)
    if backend == "triton" and not HAS_TRITON:
        return "the package triton is not installed"
    if (backend == "cuda" or is_forced(backend)) and not facts.has_library:
        return f"the compiled library is not there for {facts.name}"
    # Sizes that every kernel takes, where it is for the device at all.
    if is_forced(backend) and not supported(backend, 64, 4096, 4096, device):
        return f"{backend} is not for {facts.name}"
    return None


def skip_unless_there(backend: str, device: torch.device) -> None:
    """Skip a test whose backend is optional and not installed."""
    reason = why_not(backend, device)
    if reason:
        pytest.skip(reason)


def every_backend(*ops: str) -> list[tuple[str, str]]:
    """(op, backend) of all that the ops know."""
    return [(op, backend) for op in ops for backend in BACKENDS[op]]


def skip_unless_room(num_bytes: float, device: torch.device) -> None:
    """Skip a test that needs more free memory than the device has."""
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < num_bytes:
        pytest.skip(f"needs {num_bytes / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} GB are free")
