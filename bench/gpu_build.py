"""The compiled library in this checkout: built unless the one that lies there is of these sources.

    python -m bench.gpu_build

Run it on the machine where the code was changed, take the library and `build/library.json` along
to the one with the GPU, and run it there: then nothing is compiled. What has to be compiled on a
machine with a GPU of compute capability 9.0 is compiled for that alone.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from secateur_kernels.library import NAME, library_status

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "kernels" / "secateur_kernels" / NAME
STAMP = ROOT / "build" / "library.json"
BUILD = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
_HOPPER = (9, 0)


def sources() -> str:
    """The digest of everything that is compiled into the library."""
    kinds = {".cpp", ".cu", ".h", ".py"}
    paths = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in kinds]
    inputs = [(path.relative_to(ROOT).as_posix(), path.read_bytes()) for path in sorted(paths)]
    digest = hashlib.sha256()
    for name, content in inputs:
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def is_current(library: Path = LIBRARY, stamp: Path = STAMP) -> bool:
    """Whether the library is the one that was built of these sources."""
    if not (library.is_file() and stamp.is_file()):
        return False
    noted = json.loads(stamp.read_text(encoding="utf-8"))
    return bool(noted == {"sources": sources(), "library": _digest(library)})


def note(library: Path = LIBRARY, stamp: Path = STAMP) -> None:
    """Remember of which sources the library is."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    noted = {"sources": sources(), "library": _digest(library)}
    stamp.write_text(json.dumps(noted), encoding="utf-8")


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    """For the build: an error without nvcc, and no more architectures than are needed."""
    values = {**os.environ, "SECATEUR_REQUIRE_CUDA": "1"}
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == _HOPPER:
        values.setdefault("SECATEUR_CUDA_ARCHS", "sm_90a")
    return values


def main() -> int:
    if is_current():
        print(f"{LIBRARY.name} is of these sources: nothing to compile")
    else:
        before = sources()
        done = subprocess.run(BUILD, cwd=ROOT, env=environment(), check=False)
        if done.returncode:
            return done.returncode
        if sources() != before:
            print("sources changed while they were compiled: run again")
            return 1
        note()
    status = library_status()
    built = f"for {', '.join(status.architectures)}" if status.loaded else f"not: {status.reason}"
    print(f"{LIBRARY.name}: loads {built}")
    return 0 if status.loaded else 1


if __name__ == "__main__":
    raise SystemExit(main())
