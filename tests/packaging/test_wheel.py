"""What gets into the wheel and the source distribution, and that the wheel works on its own."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_without_nvcc_the_wheel_is_pure(pure_wheel: Path, root: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    found = names(pure_wheel)
    assert not [name for name in found if name.endswith((".so", ".cu", ".cpp"))]
    for folder in ("kernels", "src"):
        modules = {p.relative_to(root / folder).as_posix() for p in (root / folder).rglob("*.py")}
        assert modules <= found
    packages = ("secateur", "secateur_command", "secateur_kernels")
    assert {f"{package}/py.typed" for package in packages} <= found
    assert not [name for name in found if name.startswith(("tests", "bench", "csrc"))]


def test_an_inference_stack_needs_four_packages(base_requirements: list[str]) -> None:
    assert sorted(base_requirements) == ["numpy", "safetensors", "torch", "triton"]


def test_measured_times_are_shipped(pure_wheel: Path, sdist: Path, table: str) -> None:
    assert table in names(pure_wheel)
    with tarfile.open(sdist) as archive:
        assert [name for name in archive.getnames() if name.endswith(table)]


def test_the_source_distribution_holds_the_kernels(sdist: Path, root: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = [p for p in (root / "csrc").rglob("*") if p.suffix in {".cu", ".cpp", ".h", ".py"}]
    assert {p.relative_to(root).as_posix() for p in sources} <= found
    assert {"setup.py", "pyproject.toml", "csrc/build.py", "csrc/README.md"} <= found
    assert not [name for name in found if name.endswith((".so", ".o"))]


def check_installed(wheel: Path, kind: str, bare_site: Path, tmp_path: Path) -> str:
    """Run the checks on an unpacked wheel, with its requirements and nothing else on the path."""
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    script = Path(__file__).with_name("check_installed.py")
    # -I and -S: neither the environment, nor the user's, nor this venv's packages.
    program = (
        f"import sys, runpy; sys.path += {[str(installed), str(bare_site)]!r}; "
        f"sys.argv = ['check_installed.py', {kind!r}]; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(installed) in done.stdout
    return done.stdout


def test_the_pure_wheel_works_beside_its_requirements_alone(
    pure_wheel: Path, bare_site: Path, tmp_path: Path
) -> None:
    check_installed(pure_wheel, "pure", bare_site, tmp_path)


@pytest.mark.slow
def test_the_compiled_wheel_works_beside_its_requirements_alone(
    compiled_wheel: Path, bare_site: Path, tmp_path: Path
) -> None:
    assert compiled_wheel.name.endswith("-py3-none-linux_x86_64.whl")
    libraries = [name for name in names(compiled_wheel) if name.endswith(".so")]
    assert libraries == ["secateur_kernels/libsecateur_cuda.so"]
    check_installed(compiled_wheel, "compiled", bare_site, tmp_path)


@pytest.fixture
def builder(root: Path) -> ModuleType:
    """csrc/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("csrc_build", root / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_library_can_be_left_out(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SECATEUR_REQUIRE_CUDA", raising=False)
    monkeypatch.setenv("SECATEUR_NO_CUDA", "1")
    assert not builder.enabled()
    assert "no compiled kernels: SECATEUR_NO_CUDA is set" in capsys.readouterr().err


def test_a_missing_compiler_is_said_or_refused(
    builder: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("SECATEUR_NO_CUDA", raising=False)
    monkeypatch.delenv("SECATEUR_REQUIRE_CUDA", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert not builder.enabled()
    assert "nvcc is not there" in capsys.readouterr().err
    monkeypatch.setenv("SECATEUR_REQUIRE_CUDA", "1")
    with pytest.raises(builder.CannotBuildError, match="nvcc is not there"):
        builder.enabled()


def test_sources_that_change_under_the_compiler_are_not_kept(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prints = iter(["before", "after"])
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    monkeypatch.setattr(builder, "_requirements", lambda: ("nvcc", tmp_path))
    monkeypatch.setattr(builder, "fingerprint", lambda version: next(prints))
    monkeypatch.setattr(builder, "_compile", lambda *arguments: "log")
    with pytest.raises(RuntimeError, match="changed while they were compiled: build once more"):
        builder.build("0.1.0")
    assert list((tmp_path / "build" / "secateur_cuda").iterdir()) == []


@pytest.mark.slow
@pytest.mark.compiled
def test_no_kernel_spills(builder: ModuleType) -> None:
    """ptxas on every instance. Needs nvcc; compiles unless the build folder has the library."""
    if not builder.enabled():
        pytest.skip("needs nvcc")
    version = importlib.import_module("secateur_kernels.version").__version__
    _, log = builder.build(version)
    found = builder.resources(log.read_text(encoding="utf-8"))
    assert [kernel for kernel in found if kernel.spill_bytes] == []
    shapes = {f"skinny {t} {r}x{n}" for t in ("bf16", "fp16") for r in (2, 4) for n in (1, 2, 4, 8)}
    # Warps along rows and tokens, token tiles a warp, thread blocks a multiprocessor.
    tiles = ("4x2x8x1", "2x2x8x2", "4x1x8x2", "2x2x4x3")
    shapes |= {f"tiles {t} {tile}" for t in ("bf16", "fp16") for tile in tiles}
    # Row tiles and token tiles of either kernel, and whether a 2:4 weight stands beside.
    pairs = ("1x1", "1x2", "2x1", "2x2", "2x4", "2x8")
    for value in ("bf16", "fp16"):
        shapes |= {f"low_rank down {value} {pair}" for pair in pairs}
        shapes |= {f"low_rank up {value} {pair}x{both}" for pair in pairs for both in (0, 1)}
    # The same where they fetch boxes, of which half are gate rows and half up rows for SiLU.
    for value in ("bf16", "fp16"):
        for rows, tokens in product((1, 2, 3, 4), (1, 2)):
            shapes |= {f"low_rank box_down {value} {rows}x{tokens}"}
            silu = (0, 1) if rows % 2 == 0 else (0,)
            shapes |= {f"low_rank box_up {value} {rows}x{tokens}x{gated}" for gated in silu}
    # Warpgroups, panels, tokens.
    wide = ["2x1x32", "2x2x32", "2x1x64", "2x2x64", "2x1x128", "2x2x128", "3x1x192", "2x1x256"]
    shapes |= {f"wide {t} {tile}" for t in ("bf16", "fp16") for tile in wide}
    compiled = [a for a in builder.architectures().split(";") if a.startswith("sm_")]
    expected = {(name, a) for name in {*shapes, "unpack24"} for a in compiled}
    assert {(kernel.kernel, kernel.architecture) for kernel in found} == expected
    # Nine warps, at most five of two thread blocks on a quarter of the registers: 96 each.
    for kernel in found:
        if re.fullmatch(r"skinny .* (2x1|2x2|2x4|4x1|4x2)", kernel.kernel):
            assert kernel.registers <= 96
        # What wide/registers.h shares out: with fewer its warpgroups would wait for ever.
        if kernel.kernel.startswith("wide") and kernel.architecture == "sm_90a":
            few_sums = kernel.kernel.endswith(("x1x32", "x2x32", "x1x64"))
            assert kernel.registers == (80 if few_sums else 128 if "3x" in kernel.kernel else 168)
        # As many of the skinny kernel: one of each kernel side by side.
        if re.fullmatch(r"low_rank (box_down .*|box_up .* [12]x.)", kernel.kernel):
            assert kernel.registers <= 96
        # Eight warps, two thread blocks.
        if re.fullmatch(r"low_rank (down|up) .* (1x1|1x2|2x1|2x2)(x.)?", kernel.kernel):
            assert kernel.registers <= 128
