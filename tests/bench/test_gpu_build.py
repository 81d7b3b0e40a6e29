"""When the compiled library has to be built anew."""

import json
import sys
from pathlib import Path

import pytest
import torch
from bench import gpu_build
from bench.gpu_build import environment, is_current, note, sources

from secateur_kernels.version import __version__


def test_a_library_counts_only_for_its_own_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, stamp = tmp_path / "library.so", tmp_path / "build" / "library.json"
    assert not is_current(library, stamp)
    library.write_bytes(b"code")
    assert not is_current(library, stamp)
    note(library, stamp)
    assert is_current(library, stamp)
    assert json.loads(stamp.read_text(encoding="utf-8"))["sources"] == sources()
    library.write_bytes(b"other code")
    assert not is_current(library, stamp)
    note(library, stamp)
    monkeypatch.setattr(gpu_build, "sources", lambda: "other sources")
    assert not is_current(library, stamp)


def test_hopper_gets_code_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECATEUR_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert environment()["SECATEUR_CUDA_ARCHS"] == "sm_90a"
    monkeypatch.setenv("SECATEUR_CUDA_ARCHS", "sm_80")
    assert environment()["SECATEUR_CUDA_ARCHS"] == "sm_80"
    monkeypatch.delenv("SECATEUR_CUDA_ARCHS")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "SECATEUR_CUDA_ARCHS" not in environment()


def test_nothing_is_compiled_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_build, "is_current", lambda: True)
    monkeypatch.setattr(gpu_build, "compile_library", lambda: pytest.fail("compiled again"))
    gpu_build.main()
    assert "nothing to compile" in capsys.readouterr().out


def test_a_failed_build_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_build, "is_current", lambda: False)
    monkeypatch.setenv("SECATEUR_NO_CUDA", "1")
    assert gpu_build.main() == 1
    assert capsys.readouterr().out == "not compiled: SECATEUR_NO_CUDA is set\n"


def test_the_library_is_built_without_setuptools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a machine with a GPU may be older than what setup.py and pyproject.toml need."""
    monkeypatch.setattr(gpu_build, "ROOT", tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "build.py").write_text(
        "import os, pathlib\n"
        "def build(version):\n"
        "    path = pathlib.Path(__file__).with_name('built.so')\n"
        "    path.write_text(version)\n"
        "    return path, None\n",
        encoding="utf-8",
    )
    target = tmp_path / "library.so"
    target.write_text("mapped by a process", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "setuptools", None)
    with target.open(encoding="utf-8") as loaded:
        gpu_build.compile_library(target)
        assert loaded.read() == "mapped by a process"
    assert target.read_text(encoding="utf-8") == __version__
