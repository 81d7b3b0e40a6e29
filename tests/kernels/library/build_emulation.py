"""Compiles the kernels' source for the emulated GPU: once for all test processes, file by file."""

import fcntl
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc"
HERE = Path(__file__).parent / "emulation"
OPTIONS = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Fortified, longjmp from one thread's stack to another's aborts.
OPTIONS += ["-U_FORTIFY_SOURCE"]
OPTIONS += ["-DSECATEUR_EMULATED", f"-I{CSRC / 'include'}", f"-I{CSRC}", f"-I{HERE}"]


def build_emulation(compiler: str) -> Path:
    """The shared library; from the build folder where it was compiled from the same files before.

    Raises:
        RuntimeError: it does not compile; says what the compiler said.
    """
    folder = ROOT / "build" / "emulation" / _fingerprint(compiler)
    library = folder / "libemulation.so"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(compiler, folder, library)
    return library


def _sources() -> list[Path]:
    """The largest first: they take longest."""
    found = [*HERE.glob("*.cpp"), *CSRC.glob("*/arguments.cpp"), CSRC / "library/error_text.cpp"]
    return sorted(found, key=lambda path: -path.stat().st_size)


def _fingerprint(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    inputs = [version.stdout, *OPTIONS]
    for folder in (CSRC, HERE):
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".h", ".cpp"}:
                inputs += [path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]


def _compile(compiler: str, folder: Path, library: Path) -> None:
    sources = _sources()
    objects = [folder / f"{source.parent.name}-{source.stem}.o" for source in sources]
    commands = [
        [compiler, *OPTIONS, "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(_run, commands))
    aside = folder / "aside.so"
    _run([compiler, "-shared", *map(str, objects), "-o", str(aside)])
    aside.rename(library)
    for path in objects:
        path.unlink()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
