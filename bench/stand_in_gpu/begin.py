"""Have `torch.cuda` speak for the stand-in."""

import os
from importlib import import_module
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from warnings import catch_warnings, simplefilter

from bench.stand_in_gpu.library import Device, load

_CAPACITY = 139 << 30
"""Of an H200, in bytes."""
_OWN = {"pack24": "pack24.op", "keep_largest_per_row": "threshold.op"}
"""Operators of ours that jobs of any size call, and their modules."""
_KEPT: list[Any] = []
"""Registrations end with what they were made by."""


class Stream:
    """Everything on it has happened."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.cuda_stream = 0

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: "Event") -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None: ...


class Event:
    """A moment of the host's clock."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._seconds = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._seconds = perf_counter()

    def wait(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds."""
        return (end._seconds - self._seconds) * 1e3


def begin(capacity: int = _CAPACITY, computes: bool = True) -> Device:
    """Compile and load the device, then import torch and let it see a GPU of `capacity` bytes.

    Our Triton kernels run in Triton's interpreter, or not at all where nothing `computes`.
    """
    device = load()
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    device.begin()
    device.set_capacity(capacity)
    _replace(torch.cuda, _memory(device, capacity) | _runtime(torch, capacity))
    _replace(
        torch._C,
        {
            "_cuda_getDevice": lambda: 0,
            "_cuda_setDevice": lambda index: None,
            "_cuda_exchangeDevice": lambda index: 0,
            "_cuda_maybeExchangeDevice": lambda index: 0,
            "_cuda_isCurrentStreamCapturing": lambda: False,
        },
    )
    _replace(torch.Tensor, {"record_stream": lambda tensor, stream: None})
    _copy_storages(torch)
    if not computes:
        _only_shapes(torch)
    device.compute(computes)
    return device


def _only_shapes(torch: Any) -> None:
    """Have our own operators take memory for results, too, and do no more."""
    library = torch.library.Library("secateur", "IMPL")
    with catch_warnings():
        simplefilter("ignore")  # That they take the place of others, which they should.
        for name, module in _OWN.items():
            results = import_module(f"secateur_kernels.{module}")._fake
            library.impl(name, results, "CUDA", allow_override=True)
    _KEPT.append(library)


def _memory(device: Device, capacity: int) -> dict[str, Any]:
    return {
        "memory_allocated": lambda device_=None: device.in_use(),
        "memory_reserved": lambda device_=None: device.in_use(),
        "max_memory_allocated": lambda device_=None: device.peak(),
        "max_memory_reserved": lambda device_=None: device.peak(),
        "reset_peak_memory_stats": lambda device_=None: device.reset_peak(),
        "mem_get_info": lambda device_=None: (capacity - device.in_use(), capacity),
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
    }


def _runtime(torch: Any, capacity: int) -> dict[str, Any]:
    # Older than what kernels of linears need, so that dispatch chooses none.
    capability = (7, 0)
    properties = SimpleNamespace(
        name="stand-in GPU",
        major=capability[0],
        minor=capability[1],
        total_memory=capacity,
        multi_processor_count=132,
        L2_cache_size=50 << 20,
        gcnArchName="",
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "default_generators": (torch.Generator("cuda:0"),),
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: stream,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
    }


def _copy_storages(torch: Any) -> None:
    """Let `copy.deepcopy` of a module work, which copies storages, not tensors."""
    clone = torch.UntypedStorage.clone

    def cloned(storage: Any) -> Any:
        if storage.device.type != "cuda":
            return clone(storage)
        values = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return values.clone().untyped_storage()

    torch.UntypedStorage.clone = cloned


def _replace(owner: object, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, value)
