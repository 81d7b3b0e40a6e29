"""Counters for kernels that sum partial results: zero before a kernel, zero again after it.

Two kernels that may run at the same time must not share counters. So every stream has its own, and
so has every CUDA graph capture, for a graph can be replayed on another stream than it was captured
on. They come out of memory that is filled with zeros once, because a fill in every call would cost
about as much as a small kernel; and that memory is not torch's, because a graph's memory pool
must not hold what outlives the graph.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.library import capture_id, zeroed_memory

COUNTERS = 8192
"""Of one stream or capture: enough for 262,144 rows in warps of 32 rows."""

_LANES = 256
_BYTES = 4

_STREAM_OF_THREAD = 2
"""The handle `cudaStreamPerThread`, which is another stream in every thread."""


@dataclass(frozen=True)
class Counters:
    """Zero counters, uint32, in the memory of a GPU."""

    address: int
    count: int
    owner: Tensor | None = None
    """What keeps the memory alive; None where it always is."""


class TicketPool:
    """The counters of one device."""

    def __init__(
        self,
        device: torch.device,
        allocate: Callable[[int, int], int] = zeroed_memory,
        lanes: int = _LANES,
    ) -> None:
        """`allocate`: device index and bytes -> address of zeros that are never given back."""
        self._device = device
        self._allocate = allocate
        self._lanes = lanes
        self._free: list[Counters] = []
        self._cannot_grow = False
        self._taken: dict[tuple[int, int], Counters] = {}
        self._lock = threading.Lock()

    def take(self, count: int, stream: int, capture: int) -> Counters:
        """At least `count` counters for one stream (its handle) or one capture.

        Where none are left during a capture, when nothing should be allocated, the call gets
        counters of its own that are filled with zeros at each replay.
        """
        found = None
        if count <= COUNTERS:
            with self._lock:
                found = self._lane(stream, capture)
        if found is not None:
            return found
        owner = torch.zeros(count, dtype=torch.int32, device=self._device)
        return Counters(owner.data_ptr(), count, owner)

    def _lane(self, stream: int, capture: int) -> Counters | None:
        if stream == _STREAM_OF_THREAD:
            stream = -threading.get_ident()
        found = self._taken.get((capture, stream))
        # Before the last are gone: several graphs may be captured without a call in between (vLLM
        # makes one a block), each takes a lane for good, and one that got none would fill its
        # counters at every replay.
        if not capture and len(self._free) < max(1, self._lanes // 2):
            self._grow(needed=found is None and not self._free)
        if found is None and self._free:
            found = self._taken[capture, stream] = self._free.pop()
        return found

    def _grow(self, needed: bool) -> None:
        # A reserve is no reason to fail, nor to ask again in every call.
        if self._cannot_grow and not needed:
            return
        size = COUNTERS * _BYTES
        try:
            start = self._allocate(self._device.index or 0, self._lanes * size)
        except SecateurError:
            self._cannot_grow = True
            if needed:
                raise
            return
        self._cannot_grow = False
        lanes = range(start, start + self._lanes * size, size)
        self._free += [Counters(address, COUNTERS) for address in lanes]


_pools: dict[int, TicketPool] = {}
_pools_lock = threading.Lock()


def take_counters(device: torch.device, count: int) -> Counters:
    """At least `count` counters for a kernel on the current stream of a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with _pools_lock:
        pool = _pools.setdefault(index, TicketPool(torch.device("cuda", index)))
    stream = torch.cuda.current_stream(index).cuda_stream
    with torch.cuda.device(index):
        capturing = torch.cuda.is_current_stream_capturing()
    return pool.take(count, stream, capture_id(stream) if capturing else 0)
