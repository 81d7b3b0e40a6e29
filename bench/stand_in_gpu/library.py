"""Compiles and loads the stand-in's device; must not import torch."""

import ctypes
import fcntl
import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_SOURCES = Path(__file__).parent / "device"
_BUILD = Path(__file__).parents[2] / "build" / "stand_in_gpu"
_OPTIONS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wall")


class Device:
    """The stand-in's memory, in bytes, and whether it computes."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        for name in ("in_use", "peak"):
            getattr(functions, f"stand_in_{name}").restype = ctypes.c_int64
        self._functions = functions

    def begin(self) -> None:
        """Give torch its memory."""
        self._functions.stand_in_begin()

    def compute(self, computes: bool) -> None:
        """Without, results take memory and are zero."""
        self._functions.stand_in_compute(ctypes.c_bool(computes))

    def set_capacity(self, num_bytes: int) -> None:
        """More is an out-of-memory error."""
        self._functions.stand_in_set_capacity(ctypes.c_int64(num_bytes))

    def in_use(self) -> int:
        """Bytes."""
        return int(self._functions.stand_in_in_use())

    def peak(self) -> int:
        """Bytes, since the last `reset_peak`."""
        return int(self._functions.stand_in_peak())

    def reset_peak(self) -> None:
        """Begin to look for the largest memory anew."""
        self._functions.stand_in_reset_peak()


def why_not() -> str | None:
    """Why there can be no stand-in here; None: there can."""
    if shutil.which("g++") is None:
        return "needs g++"
    if "+cu" in version("torch") or (_torch() / "lib" / "libtorch_cuda.so").exists():
        return "torch knows GPUs of its own"
    return None


def load() -> Device:
    """Compile it, unless that was done before for this torch, and load it before torch.

    Raises:
        RuntimeError: torch was imported before, or knows GPUs itself; or it does not compile: says
            what the compiler said.
    """
    if reason := why_not():
        raise RuntimeError(f"no stand-in for a GPU here: {reason}")
    if "torch" in sys.modules:
        raise RuntimeError("expected the stand-in GPU to begin before torch is imported")
    library = build()
    # Torch looks for GPUs once, while it is imported.
    for name in ("libtorch_global_deps.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / name), ctypes.RTLD_GLOBAL)
    return Device(ctypes.CDLL(str(library)))


def build() -> Path:
    """The compiled library."""
    files = sorted(_SOURCES.iterdir())
    texts = [version("torch"), *_OPTIONS, *(file.read_text(encoding="utf-8") for file in files)]
    folder = _BUILD / hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libstand_in_gpu.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            aside = folder / "aside.so"
            _compile(aside)
            aside.rename(library)
    return library


def _compile(target: Path) -> None:
    torch = _torch()
    command = ["g++", *_OPTIONS, "-isystem", str(torch / "include"), "-o", str(target)]
    command += [str(_SOURCES / "stand_in.cpp"), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the stand-in GPU does not compile:\n{done.stderr}")


def _torch() -> Path:
    """Where torch is installed, without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed")
    return Path(spec.origin).parent
