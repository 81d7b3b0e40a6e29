"""The compiled library: found, loaded once, and asked what it was built for.

It is a plain shared library beside this file, not an extension module: it holds no Python symbol,
so that one file serves every Python. Loading it registers the ops `torch.ops.secateur_cuda`.
Nothing is loaded when the package is imported, and its absence is no error until it is required.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from secateur_kernels.errors import SecateurError
from secateur_kernels.version import __version__

NAME = "libsecateur_cuda.so"

# The ops that this package calls. A library of the same version that was built from other sources,
# as happens in a checkout, is recognised by them.
SCHEMAS = {
    "unpack24": "(Tensor data, Tensor(a!) dense, bool gate_up) -> ()",
    "sparse24_skinny": "(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
    "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
    "bool dependent, int warps, int row_tiles, int stages, int blocks, int cluster, int lead, "
    "int ahead) -> ()",
    "low_rank": "(Tensor x, Tensor? data, Tensor down, Tensor up, int[] group_rows, Tensor? bias, "
    "Tensor? residual, Tensor(a!) y, Tensor(b!) workspace, bool gate_up, bool silu_and_mul, "
    "bool dependent, int[] down_division, int[] up_division) -> ()",
    "sparse24_tiles": "(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
    "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
    "bool dependent, int tile_rows, int tile_tokens, int stages, int blocks, int waves, "
    "int group) -> ()",
    "sparse24_wide": "(Tensor x, Tensor data, Tensor? bias, Tensor? residual, Tensor(a!) y, "
    "Tensor(b!)? workspace, int counters, int counter_count, bool gate_up, bool silu_and_mul, "
    "bool dependent, int warpgroups, int panels, int tile_tokens, int stages, int cluster_rows, "
    "int cluster_tokens, int cluster_steps, int blocks, int waves, int group, bool late, "
    "int ahead) -> ()",
}


@dataclass(frozen=True)
class LibraryStatus:
    """What is known of the compiled library."""

    loaded: bool
    path: Path | None = None
    """None where there is no file."""
    architectures: tuple[str, ...] = ()
    """What it was built for: `sm_80` runs on 8.x from 8.0 on, `sm_90a` on 9.0 only, `compute_80`
    is compiled by the driver for anything from 8.0 on but 9.0, whose configs want `sm_90a`."""
    version: str | None = None
    """Of the package that it was built from."""
    reason: str = ""
    """Why it is not loaded; empty where it is."""

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether it is loaded and holds code for a compute capability."""
        return self.loaded and any(_covers(name, capability) for name in self.architectures)


def _covers(architecture: str, capability: tuple[int, int]) -> bool:
    if capability == (9, 0):  # configs ask for clusters and warpgroups: other code has neither
        return architecture == "sm_90a"
    kind, _, number = architecture.partition("_")
    exact = number.endswith("a")
    digits = number.rstrip("a")
    built = (int(digits[:-1]), int(digits[-1]))
    if kind == "compute":
        return capability >= built
    return capability == built if exact else capability[0] == built[0] and capability >= built


@cache
def library_status() -> LibraryStatus:
    """Load the library if it is there, once; later calls return what the first one found."""
    return _load(Path(__file__).parent / NAME)


def _load(path: Path) -> LibraryStatus:
    if not path.exists():
        return LibraryStatus(
            False,
            reason="it is not built: this is the pure Python install (csrc/README.md says how to "
            "build it with nvcc)",
        )
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return LibraryStatus(False, path, reason=f"{path} cannot be loaded: {error}")
    functions = _functions(path)
    schemas = {name: f"secateur_cuda::{name}{SCHEMAS[name]}" for name in SCHEMAS}
    if functions is None or any(_registered(name) != schemas[name] for name in SCHEMAS):
        return LibraryStatus(
            False, path, reason=f"{path} was built from other sources: build it anew"
        )
    for name in SCHEMAS:
        torch.library.register_fake(f"secateur_cuda::{name}", _fake)
    return _status_of(path, functions)


def _registered(name: str) -> str:
    op = getattr(torch.ops.secateur_cuda, name, None)
    return "" if op is None else str(op.default._schema)


def _fake(*arguments: Any) -> None:
    """All ops of the library write into tensors that they are given."""


def _functions(path: Path) -> ctypes.CDLL | None:
    """The C functions of `csrc/include/secateur/core.h` that are called; None if one is missing."""
    functions = ctypes.CDLL(str(path))
    try:
        for name in ("secateur_version", "secateur_architectures", "secateur_error_text"):
            getattr(functions, name).restype = ctypes.c_char_p
        for name in ("secateur_cuda_version", "secateur_driver_version"):
            getattr(functions, name).restype = ctypes.c_int
        functions.secateur_error_text.argtypes = [ctypes.c_int]
        functions.secateur_capture_id.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)]
        functions.secateur_zeroed_memory.argtypes = [
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.POINTER(ctypes.c_void_p),
        ]
    except AttributeError:
        return None
    return functions


def _status_of(path: Path, functions: ctypes.CDLL) -> LibraryStatus:
    version = functions.secateur_version().decode()
    architectures = tuple(functions.secateur_architectures().decode().split(","))
    cuda, driver = functions.secateur_cuda_version(), functions.secateur_driver_version()
    reason = _mismatch(version, cuda, driver)
    return LibraryStatus(not reason, path, architectures, version, reason)


def _mismatch(version: str, cuda: int, driver: int) -> str:
    """Why a library that could be loaded must not be used; empty where it may.

    Versions of CUDA are 1000 * major + 10 * minor; a driver version of 0 means that there is none.
    """
    if version != __version__:
        return f"it is of version {version}, but the Python package is {__version__}: build it anew"
    if driver and driver // 1000 < cuda // 1000:
        return (
            f"it was built with CUDA {cuda // 1000}.{cuda % 1000 // 10}, "
            f"but the driver supports CUDA {driver // 1000}.{driver % 1000 // 10} at most"
        )
    return ""


def require_library(device: torch.device) -> None:
    """Raise SecateurError, with the reason, unless the library can run on a device."""
    status = library_status()
    if not status.loaded:
        raise SecateurError(f"the compiled library is not there: {status.reason}")
    if device.type != "cuda":
        raise SecateurError(f"expected an NVIDIA GPU for the compiled library, got {device}")
    index = torch.cuda.current_device() if device.index is None else device.index
    check_capability(status, *_device(index))


@cache
def _device(index: int) -> tuple[tuple[int, int], str]:
    return torch.cuda.get_device_capability(index), torch.cuda.get_device_name(index)


def check_capability(status: LibraryStatus, capability: tuple[int, int], device: str) -> None:
    """Raise SecateurError unless a loaded library holds code for a compute capability."""
    if not status.runs_on(capability):
        built = ", ".join(status.architectures)
        raise SecateurError(
            f"the compiled library was built for {built}, but {device} is "
            f"sm_{capability[0]}{capability[1]}"
        )


@cache
def library_functions() -> ctypes.CDLL:
    """The C functions of the loaded library.

    Raises:
        SecateurError: it is not loaded.
    """
    status = library_status()
    functions = _functions(status.path) if status.loaded and status.path else None
    if functions is None:
        raise SecateurError(f"the compiled library is not there: {status.reason}")
    return functions


def capture_id(stream: int) -> int:
    """A number for the graph capture that a stream (its handle) is part of, 0 outside of one."""
    found = ctypes.c_uint64()
    _check(library_functions().secateur_capture_id(stream, ctypes.byref(found)))
    return found.value


def zeroed_memory(device: int, num_bytes: int) -> int:
    """The address of memory of a GPU that is zero, and that is never given back."""
    found = ctypes.c_void_p()
    _check(library_functions().secateur_zeroed_memory(device, num_bytes, ctypes.byref(found)))
    return found.value or 0


def _check(code: int) -> None:
    if code:
        text = library_functions().secateur_error_text(code).decode()
        raise SecateurError(f"the compiled library says: {text}")
