"""Records of kernel benchmarks: the JSON lines of `bench.records`, with what a GPU run must say.

Needs torch and the kernel package only, as a machine with a GPU may have no more.
"""

import ctypes
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from secateur_kernels.dispatch.problem import device_facts
from secateur_kernels.library import library_status
from secateur_kernels.version import __version__

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "triton", "numpy")
_QUERIES = (
    "driver_version",
    "clocks.max.sm",
    "clocks.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
)


@cache
def machine_facts(device: torch.device) -> dict[str, str]:
    """The device, its state at the start, and the machine around it."""
    facts = {
        "device": device_facts(device).name,
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory_bytes": str(properties.total_memory),
            "compiled_library": str(device_facts(device).has_library),
            "library_fingerprint": library_fingerprint(),
            **_smi(device),
        }
    return facts


def library_fingerprint() -> str:
    """Of the sources and options that the compiled library was built from."""
    path = library_status().path
    if path is None or not library_status().loaded:
        return "not there"
    fingerprint = ctypes.CDLL(str(path)).secateur_fingerprint
    fingerprint.restype = ctypes.c_char_p
    return str(fingerprint().decode())


def _smi(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says, where there is one; nothing is set."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(_QUERIES)}", "--format=csv,noheader"]
    command.append(f"--id={device.index or 0}")
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return {}
    values = [value.strip() for value in out.stdout.strip().split(",")]
    return dict(zip(_QUERIES, values, strict=False))


@cache
def package_versions() -> dict[str, str]:
    """Versions of everything that times depend on."""
    found = {"secateur": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        cusparselt = torch.backends.cusparselt.version()
        found["cusparselt"] = str(cusparselt) if cusparselt else "not there"
    return found


def append_record(
    name: str, values: Mapping[str, Any], device: torch.device, folder: Path = RESULTS
) -> dict[str, Any]:
    """Add one line to `<folder>/<name>.jsonl` and return it."""
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(device),
        "versions": package_versions(),
        **values,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record


def read_records(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All lines of `<folder>/<name>.jsonl`, oldest first; a line that a crash cut is left out."""
    path = folder / f"{name}.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def made_here(record: Mapping[str, Any], device: torch.device) -> bool:
    """Whether a record is of this device, these versions and this build of the compiled library,
    so that it need not be made again."""
    versions = package_versions()
    names = ("secateur", "torch", "triton")
    same = all(record["versions"].get(name) == versions.get(name) for name in names)
    facts = machine_facts(device)
    library = ("compiled_library", "library_fingerprint")
    built = all(record["machine"].get(name) == facts.get(name) for name in library)
    return same and built and record["machine"]["device"] == facts["device"]
