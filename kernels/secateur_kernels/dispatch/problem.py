"""What dispatch decides on: plain facts, no tensors."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from secateur_kernels.backends import HAS_TRITON
from secateur_kernels.library import library_status
from secateur_kernels.precision import dtype_name

Op = Literal["sparse24_linear", "low_rank_linear", "sparse24_low_rank_linear"]


@dataclass(frozen=True)
class DeviceFacts:
    """The device as far as dispatch cares."""

    name: str
    """As CUDA reports it, such as "NVIDIA H200", or "cpu"."""
    capability: tuple[int, int] = (0, 0)
    """Compute capability; (0, 0) for a CPU."""
    num_sms: int = 0
    has_triton: bool = False
    has_library: bool = False
    """The compiled library is loaded and was built for this device."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.capability != (0, 0)

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())


CPU = DeviceFacts("cpu")


@cache
def device_facts(device: torch.device) -> DeviceFacts:
    """The facts of a torch device, read once."""
    if device.type != "cuda":
        return CPU
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return DeviceFacts(
        name=properties.name,
        capability=capability,
        num_sms=properties.multi_processor_count,
        has_triton=HAS_TRITON and capability >= (8, 0),
        has_library=library_status().runs_on(capability),
    )


@dataclass(frozen=True)
class Problem:
    """One call of a linear op: y [m, n] = x [m, k] @ weight.T."""

    op: Op
    m: int
    n: int
    k: int
    dtype: torch.dtype
    device: DeviceFacts = CPU
    rank: int = 0
    """Of the factors, per group; 0 where there are none."""
    groups: int = 1
    dense_copy: bool = False
    """The caller keeps the dense weight beside the packed one."""

    def __str__(self) -> str:
        rank = f", rank {self.rank}" if self.rank else ""
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        dtype = dtype_name(self.dtype)
        return (
            f"{self.op} of {self.m} tokens with a weight [{self.n}, {self.k}]{rank}{groups}, "
            f"{dtype}, on {self.device.name}"
        )
