"""What the memory gives at best, measured in the run that compares itself with it."""

import time
from dataclasses import dataclass

import torch

from secateur_kernels.timing import time_in_turns

# Far larger than any cache.
_BYTES = 4_000_000_000
_BYTES_ON_A_CPU = 1_000_000
_WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second."""

    read: float
    """Of a sum over 4 GB: each byte read once."""
    copy: float
    """Of a device-to-device copy: each byte read and written, counted twice."""


def measure_ceilings(device: torch.device, rounds: int = 15) -> Ceilings:
    """The lower quartile of several rounds, since a ceiling is what the memory can do."""
    num_bytes = _BYTES if device.type == "cuda" else _BYTES_ON_A_CPU
    source = torch.empty(num_bytes // 2, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    calls = {
        "read": lambda index: source.sum(dtype=torch.float32),
        "copy": lambda index: target.copy_(source),
    }
    # A device wakes up from its idle clocks, and an H200's copies take two thirds longer in their
    # first second.
    started = time.monotonic()
    while device.type == "cuda" and time.monotonic() - started < _WARM_UP_SECONDS:
        time_in_turns(calls, device, rounds=rounds)
    timed = time_in_turns(calls, device, rounds=rounds)
    size = float(source.nbytes)
    return Ceilings(
        read=size / timed["read"].lower_quartile * 1e6,
        copy=2 * size / timed["copy"].lower_quartile * 1e6,
    )
