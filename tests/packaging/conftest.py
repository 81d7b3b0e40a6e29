"""Wheels of this checkout, built in a copy of it, and a path without the front end's packages."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["csrc", "kernels", "src", "setup.py", "pyproject.toml", "MANIFEST.in"]
SOURCES += ["README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"]
# Beside those that `make tune-gpu` has written, if any.
TABLE = "secateur_kernels/dispatch/tables/times-sample.json"


def build(kind: str, out: Path, scratch: Path, **environment: str) -> Path:
    """A wheel or sdist, without network, from a copy that has no leftovers of other builds."""
    copy = scratch / "copy"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=unwanted)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    table = copy / "kernels" / TABLE
    table.parent.mkdir(exist_ok=True)
    table.write_text("{}\n")
    # What was compiled once stays in the checkout's build folder, which git ignores.
    compiled = ROOT / "build" / "secateur_cuda"
    compiled.mkdir(parents=True, exist_ok=True)
    (copy / "build").mkdir()
    (copy / "build" / "secateur_cuda").symlink_to(compiled)
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "-o", str(out), "."]
    done = subprocess.run(
        command,
        cwd=copy,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def table() -> str:
    """Measured times, as the wheel names the file."""
    return TABLE


@pytest.fixture(scope="session")
def compiled_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the kernels: compiled here unless the build folder has them."""
    if shutil.which("nvcc") is None or os.environ.get("SECATEUR_NO_CUDA", "") not in {"", "0"}:
        pytest.skip("needs nvcc")
    out, scratch = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("scratch")
    return build("wheel", out, scratch, SECATEUR_REQUIRE_CUDA="1")


@pytest.fixture(scope="session")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, scratch = tmp_path_factory.mktemp("pure"), tmp_path_factory.mktemp("scratch")
    return build("wheel", out, scratch, SECATEUR_NO_CUDA="1")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, scratch = tmp_path_factory.mktemp("sdist"), tmp_path_factory.mktemp("scratch")
    return build("sdist", out, scratch, SECATEUR_NO_CUDA="1")


@pytest.fixture(scope="session")
def base_requirements(pure_wheel: Path) -> list[str]:
    return requirements_of(pure_wheel)


def requirements_of(wheel: Path) -> list[str]:
    """Names of what a wheel needs without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    return base_names(re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE))


def base_names(requirements: list[str]) -> list[str]:
    names = []
    for requirement in requirements:
        if "extra ==" not in requirement:
            found = re.match(r"[\w.-]+", requirement)
            assert found is not None
            names.append(found[0].lower())
    return names


def top_level_paths(distribution: importlib.metadata.Distribution) -> Iterator[Path]:
    """What a distribution put into site-packages."""
    for file in distribution.files or []:
        if file.parts[0] not in {"..", "__pycache__"}:
            yield Path(str(distribution.locate_file(file.parts[0])))


@pytest.fixture(scope="session")
def bare_site(base_requirements: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to what the wheel needs and what that needs in turn, nothing else."""
    folder = tmp_path_factory.mktemp("site")
    waiting, seen = list(base_requirements), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for path in set(top_level_paths(distribution)):
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        waiting += base_names(list(distribution.requires or []))
    return folder
