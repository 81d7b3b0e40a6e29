"""Compiles the library. `setup.py` calls `build`; `python csrc/build.py` prints what ptxas said.

The environment is described in csrc/README.md. Only the standard library is used, and torch is not
imported: its headers and two of its libraries are all that is needed.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent
NAME = "libsecateur_cuda.so"

# SASS for A100, whose code serves 8.6 and 8.9 as well, and for H100 and H200; PTX for the driver
# to compile on whatever else is newer.
ARCHITECTURES = "sm_80;sm_90a;compute_80"
# The oldest torch that the library can be loaded beside: 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000ULL"
COMPILE = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Xfatbin", "-compress-all"]
COMPILE += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unknown-pragmas"]
COMPILE += ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
COMPILE += [f"-I{CSRC / 'include'}", f"-I{CSRC}"]
# torch loads its own libraries for itself only: the library has to name those it uses, and must not
# lose the name of libtorch, through which libtorch_cuda is found where there is one.
LINK = ["-shared", "-cudart", "static", "-Xlinker", "--exclude-libs,ALL", "-Xlinker", "-s"]
LINK += ["-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu"]


# What ptxas only notes: that it made asynchronous products wait for each other, or left registers
# as they were. A kernel would be slow, or wait for ever.
LOSSES = ("Potential Performance Loss", "'setmaxnreg' ignored")

# Source files of these endings hold the instances of a kernel for one value type.
_TYPES = {"bf16", "fp16"}


class CannotBuildError(Exception):
    """There is no compiled library here; the text says why."""


class KernelResources(NamedTuple):
    """What ptxas says of one kernel for one architecture."""

    kernel: str
    architecture: str
    registers: int
    spill_bytes: int


def enabled() -> bool:
    """Whether the library can and should be built; says why not.

    Raises:
        CannotBuildError: SECATEUR_REQUIRE_CUDA is set, but it cannot be built.
    """
    try:
        _requirements()
    except CannotBuildError as error:
        if _is_set("SECATEUR_REQUIRE_CUDA"):
            raise
        print(f"secateur: no compiled kernels: {error}", file=sys.stderr)
        return False
    return True


def build(version: str) -> tuple[Path, Path]:
    """Compile the library unless build/ has it; return the library and the compiler's log.

    Raises:
        CannotBuildError: there is no compiler or no torch.
        RuntimeError: a source does not compile, or one was changed meanwhile.
    """
    nvcc, torch = _requirements()
    print_of_inputs = fingerprint(version)
    folder = ROOT / "build" / "secateur_cuda" / print_of_inputs
    if not folder.exists():
        aside = folder.with_name(f"{print_of_inputs}.{os.getpid()}")
        aside.mkdir(parents=True)
        log = _compile(nvcc, torch, _definitions(version, print_of_inputs), aside)
        if fingerprint(version) != print_of_inputs:
            # It would go by the name of sources that it is not made of.
            shutil.rmtree(aside)
            raise RuntimeError("sources were changed while they were compiled: build once more")
        (aside / "log").write_text(log, encoding="utf-8")
        try:
            aside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return folder / NAME, folder / "log"


def fingerprint(version: str) -> str:
    """Of everything that goes into the library: sources, options, compiler."""
    nvcc, _ = _requirements()
    compiler = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    inputs = [version, compiler.stdout, architectures(), *LINK]
    inputs += [option.replace(str(ROOT), "") for option in COMPILE]
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in {".cpp", ".cu", ".h"}:
            inputs += [path.relative_to(CSRC).as_posix(), path.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]


def architectures() -> str:
    """What to build for, separated by semicolons."""
    return os.environ.get("SECATEUR_CUDA_ARCHS", ARCHITECTURES)


def resources(log: str) -> list[KernelResources]:
    """What ptxas said, one entry a kernel and architecture."""
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    return [
        KernelResources(_readable(name), architecture, int(registers), int(stores) + int(loads))
        for name, architecture, stores, loads, registers in pattern.findall(log)
    ]


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in {"", "0"}


@functools.cache
def _requirements() -> tuple[str, Path]:
    """The compiler, and the folder of torch."""
    if _is_set("SECATEUR_NO_CUDA"):
        raise CannotBuildError("SECATEUR_NO_CUDA is set")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise CannotBuildError("they are built on Linux x86_64 only")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        raise CannotBuildError("nvcc is not there (looked in CUDA_HOME, else on PATH)")
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise CannotBuildError("torch is not there to build with: use --no-build-isolation")
    version = importlib.metadata.version("torch")
    if [int(part) for part in version.split(".")[:2]] < [2, 10]:
        raise CannotBuildError(f"they need torch 2.10 or newer, not {version}")
    return nvcc, Path(found.origin).parent


def _definitions(version: str, print_of_inputs: str) -> list[str]:
    values = {
        "VERSION": version,
        "ARCHITECTURES": architectures().replace(";", ","),
        "FINGERPRINT": print_of_inputs,
    }
    return [f'-DSECATEUR_{name}="{value}"' for name, value in values.items()]


def _compile(nvcc: str, torch: Path, definitions: list[str], folder: Path) -> str:
    options = [*COMPILE, *definitions, "-isystem", str(torch / "include")]
    for architecture in architectures().split(";"):
        number = architecture.partition("_")[2]
        options.append(f"-gencode=arch=compute_{number},code={architecture}")
    # The longest first.
    sources = sorted(
        [*CSRC.rglob("*.cu"), *CSRC.rglob("*.cpp")], key=lambda p: p.stem[-4:] not in _TYPES
    )
    objects = [folder / f"{s.parent.name}-{s.name}.o" for s in sources]
    commands = [
        [nvcc, *options, "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        logs = list(threads.map(_run, commands))
    libraries = ["-L", str(torch / "lib")]
    lost = [line for log in logs for line in log.splitlines() if any(t in line for t in LOSSES)]
    if lost:
        raise RuntimeError("\n".join(lost))
    logs.append(_run([nvcc, *map(str, objects), "-o", str(folder / NAME), *libraries, *LINK]))
    for path in objects:
        path.unlink()
    return "".join(logs)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{log}")
    return log


def _readable(mangled: str) -> str:
    """Such as `skinny bf16 2x8` (kernel, value type, numbers of its shape) or `unpack24`."""
    if "unpack24" in mangled:
        return "unpack24"
    length = re.match(r"_ZN8secateur(\d+)", mangled)
    value = re.search(r"Bf16|Fp16", mangled)
    if not length or not value:
        return mangled
    family = mangled[length.end() : length.end() + int(length[1])]
    function = re.match(r"\d+(.*?)_?kernelI", mangled[length.end() + len(family) :])
    names = [family, function[1] if function else "", value[0].lower()]
    return " ".join(filter(None, [*names, "x".join(re.findall(r"L[ib](\d+)E", mangled))]))


def _main() -> None:
    text = (ROOT / "kernels" / "secateur_kernels" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.*)"', text)
    assert found is not None
    library, log = build(found[1])
    print(f"{library}: {library.stat().st_size} bytes")
    for kernel in sorted(resources(log.read_text(encoding="utf-8"))):
        print(
            f"{kernel.kernel:24} {kernel.architecture:7} {kernel.registers:4} registers "
            f"{kernel.spill_bytes:4} bytes spilled"
        )


if __name__ == "__main__":
    _main()
