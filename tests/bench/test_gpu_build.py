"""When the compiled library has to be built anew."""

import json
from pathlib import Path

import pytest
import torch
from bench import gpu_build
from bench.gpu_build import environment, is_current, note, sources


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
    monkeypatch.setattr(gpu_build, "BUILD", ("no-such-program",))
    gpu_build.main()
    assert "nothing to compile" in capsys.readouterr().out


def test_a_failed_build_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_build, "is_current", lambda: False)
    monkeypatch.setattr(gpu_build, "BUILD", ("false",))
    assert gpu_build.main() == 1
