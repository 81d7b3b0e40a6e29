"""Where and with what a result was made: it goes into every report."""

import os
import platform
import resource
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from secateur_kernels.version import __version__

_PACKAGES = ("transformers", "triton", "safetensors", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of Python, Secateur and what the numbers depend on."""
    found = {"secateur": __version__, "python": platform.python_version()}
    # As torch says it: metadata of PyPI's wheels leave out for which CUDA they were built.
    found["torch"] = str(torch.__version__)
    return found | _installed()


@cache
def _installed() -> dict[str, str]:
    """Read once: to look for packages takes longer than to prune a tiny model."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine_facts(device: torch.device | None = None) -> dict[str, str]:
    """Processor, cores, system, and the device that the work ran on."""
    facts = {
        "processor": _processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
    }
    if device is not None and device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    else:
        facts["device"] = "cpu"
    return facts


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
