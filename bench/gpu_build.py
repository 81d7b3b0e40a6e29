"""The compiled library in this checkout: built unless the one that lies there is of these sources.

    python -m bench.gpu_build

Run it on the machine where the code was changed, take the library and `build/library.json` along
to the one with the GPU, and run it there: then nothing is compiled. What has to be compiled on a
machine with a GPU of compute capability 9.0 is compiled for that alone.
"""

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import torch

from secateur_kernels.library import NAME, library_status
from secateur_kernels.version import __version__

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "kernels" / "secateur_kernels" / NAME
STAMP = ROOT / "build" / "library.json"
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
    """For the build: no more architectures than are needed."""
    values = dict(os.environ)
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == _HOPPER:
        values.setdefault("SECATEUR_CUDA_ARCHS", "sm_90a")
    return values


def compile_library(target: Path = LIBRARY) -> None:
    """Compile the sources into the checkout; without setup.py, whose setuptools may be too old.

    Raises:
        Exception: the compiler is not there, or does not like the sources; it says which.
    """
    spec = importlib.util.spec_from_file_location("secateur_csrc_build", ROOT / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    os.environ.update(environment())
    built, _ = builder.build(__version__)
    aside = target.with_name(f".{target.name}.partial")  # a process may have the old one loaded
    shutil.copyfile(built, aside)
    aside.replace(target)


def main() -> int:
    if is_current():
        print(f"{LIBRARY.name} is of these sources: nothing to compile")
    else:
        before = sources()
        try:
            compile_library()
        except Exception as error:  # it names the command and what the compiler said
            print(f"not compiled: {error}")
            return 1
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
