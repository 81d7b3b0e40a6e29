"""Where hidden states are kept between blocks: on the device, in host memory, or in a file."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from secateur.calibration.inputs import NewBuffer
from secateur.checkpoint.write import space_errors
from secateur.models.host_memory import available_host_bytes

Home = Literal["auto", "device", "host", "file"]
"""`host` is pinned memory where blocks run on a GPU; `file` is mapped into memory, and the system
writes it out where memory is short."""

# The rest is for the block, what its method sums up, and its temporary tensors.
_SHARE_OF_DEVICE = 1 / 3
_SHARE_OF_HOST = 1 / 2


def choose_home(home: Home, num_bytes: int, device: torch.device) -> Home:
    """Where to keep activations of so many bytes; anything but `auto` is taken as it is."""
    if home != "auto":
        return home
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if num_bytes <= free * _SHARE_OF_DEVICE:
            return "device"
    room = available_host_bytes() * _SHARE_OF_HOST
    return "host" if buffers_on_host(num_bytes, device) <= room else "file"


def buffers_on_host(num_bytes: int, device: torch.device) -> int:
    """What two buffers take that hold so many bytes."""
    if device.type != "cuda":
        return num_bytes
    return 2 * bytes_on_host((num_bytes + 1) // 2, device)


def bytes_on_host(num_bytes: int, device: torch.device) -> int:
    """What a tensor takes that is copied to the device: torch pins memory in powers of two."""
    return 1 << max(0, num_bytes - 1).bit_length() if device.type == "cuda" else num_bytes


def buffer_maker(home: Home, device: torch.device, folder: Path) -> NewBuffer:
    """Makes buffers in one of the places.

    Args:
        home: not `auto`.
        device: where blocks run.
        folder: for files, which are made anew and stay until the folder goes.
    """
    made: list[Path] = []

    def new_buffer(size: int, dtype: torch.dtype) -> Tensor:
        if home == "device":
            return torch.empty(size, dtype=dtype, device=device)
        if home == "host":
            return torch.empty(size, dtype=dtype, pin_memory=device.type == "cuda")
        path = folder / f"activations-{len(made)}.bin"
        path.unlink(missing_ok=True)
        made.append(path)
        # Its blocks are taken at once: on a full disk a mapped file would end the process later.
        with space_errors(folder), path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size * dtype.itemsize))
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype)

    return new_buffer
