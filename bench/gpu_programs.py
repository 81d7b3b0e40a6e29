"""The programs in `bench/microbenchmarks`: compiled with nvcc into `build/`, and run.

    python -m bench.gpu_programs         compile all

A program that was compiled from the same sources is not compiled again, and needs no nvcc: `build/`
can be made on another machine. Only the standard library is used.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "bench" / "microbenchmarks"
BUILT = ROOT / "build" / "microbenchmarks"
_INCLUDES = (SOURCES, ROOT / "csrc" / "include", ROOT / "csrc")
_COMPILE = ("-std=c++17", "-O3", "-Xptxas", "-v", "-gencode=arch=compute_90a,code=sm_90a")


class ProgramError(RuntimeError):
    """A program failed, or took too long."""

    def __init__(self, message: str, printed: str) -> None:
        """`printed`: what it had said until then."""
        super().__init__(message)
        self.printed = printed


def program_names() -> list[str]:
    """Of all programs, in alphabetical order."""
    return sorted(path.stem for path in SOURCES.glob("*.cu"))


def build(name: str, folder: Path = BUILT) -> Path:
    """Compile a program unless that was done from the same sources; what ptxas said lies beside it.

    Raises:
        RuntimeError: nvcc is not there, or does not like the source.
    """
    program, stamp = folder / name, folder / f"{name}.sources"
    sources = fingerprint(name)
    if program.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == sources:
        return program
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError(f"{program} was not compiled from these sources, and nvcc is not there")
    folder.mkdir(parents=True, exist_ok=True)
    command = [nvcc, *_COMPILE, *(f"-I{path}" for path in _INCLUDES)]
    command += [str(SOURCES / f"{name}.cu"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{log}")
    (folder / f"{name}.log").write_text(log, encoding="utf-8")
    stamp.write_text(sources, encoding="utf-8")
    return program


def build_all(names: Sequence[str] | None = None, folder: Path = BUILT) -> list[Path]:
    """Compile programs side by side."""
    chosen = program_names() if names is None else names
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda name: build(name, folder), chosen))


def fingerprint(name: str) -> str:
    """Of everything that goes into a program but the compiler."""
    inputs = [name, *_COMPILE]
    for path in sources_of(SOURCES / f"{name}.cu"):
        inputs += [path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()


def sources_of(path: Path) -> list[Path]:
    """A source file and the headers of this repository that it includes, by whatever way."""
    found, waiting = {path}, [path]
    while waiting:
        for header in re.findall(r'#include "(.+?)"', waiting.pop().read_text(encoding="utf-8")):
            places = (folder / header for folder in _INCLUDES)
            new = {place for place in places if place.is_file()} - found
            found |= new
            waiting += new
    return sorted(found)


def run(program: Path, *arguments: str, timeout: float = 120.0) -> str:
    """What a program prints.

    Raises:
        ProgramError: it failed, cannot be started, or took longer than `timeout` seconds.
    """
    command = [str(program), *arguments]
    try:
        if not os.access(program, os.X_OK):
            program.chmod(program.stat().st_mode | 0o111)  # a copy has lost that
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode(errors="replace")
        raise ProgramError(f"{program.name} took longer than {timeout:.0f} s", printed) from error
    except OSError as error:
        raise ProgramError(f"{program.name} cannot be started: {error}", "") from error
    printed, said = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode:
        raise ProgramError(f"{program.name} ended with {done.returncode}: {said.strip()}", printed)
    return printed


def main() -> None:
    for program in build_all():
        print(program)


if __name__ == "__main__":
    main()
