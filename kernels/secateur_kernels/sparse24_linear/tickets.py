"""Counters for kernels that sum partial results: zero before a kernel, zero again after it.

Two kernels that may run at the same time must not share counters. So every stream has its own, and
so has every CUDA graph capture, for a graph can be replayed on another stream than it was captured
on. They come out of a pool that is filled with zeros once, because a fill in every call would cost
about as much as a small kernel.
"""

import threading

import torch
from torch import Tensor

from secateur_kernels.library import capture_id

COUNTERS = 8192
"""Of one stream or capture: enough for 262,144 rows in warps of 32 rows."""

_LANES = 64


class TicketPool:
    """The counters of one device."""

    def __init__(self, device: torch.device, lanes: int = _LANES) -> None:
        self._device = device
        self._lanes = lanes
        self._free: list[Tensor] = []
        self._taken: dict[tuple[int, int], Tensor] = {}
        self._lock = threading.Lock()

    def take(self, count: int, stream: int, capture: int) -> Tensor:
        """At least `count` zero counters, int32, for one stream (its handle) or one capture.

        Where none are left during a capture, when no memory outside of the graph can be had, the
        graph gets counters of its own that are filled with zeros at each replay.
        """
        if count > COUNTERS:
            return torch.zeros(count, dtype=torch.int32, device=self._device)
        with self._lock:
            found = self._taken.get((capture, stream))
            if found is None and not self._free and not capture:
                self._fill()
            if found is None and self._free:
                found = self._taken[capture, stream] = self._free.pop()
        if found is None:
            return torch.zeros(count, dtype=torch.int32, device=self._device)
        return found

    def _fill(self) -> None:
        pool = torch.zeros(self._lanes, COUNTERS, dtype=torch.int32, device=self._device)
        if self._device.type == "cuda":
            # Once for many calls: other streams must not find the memory before it is zero.
            torch.cuda.current_stream(self._device).synchronize()
        self._free += list(pool)


_pools: dict[int, TicketPool] = {}
_pools_lock = threading.Lock()


def take_counters(device: torch.device, count: int) -> Tensor:
    """At least `count` zero counters, int32, for a kernel on the current stream of a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with _pools_lock:
        pool = _pools.setdefault(index, TicketPool(torch.device("cuda", index)))
    stream = torch.cuda.current_stream(index).cuda_stream
    with torch.cuda.device(index):
        capturing = torch.cuda.is_current_stream_capturing()
    return pool.take(count, stream, capture_id(stream) if capturing else 0)
