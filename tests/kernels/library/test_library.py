"""The loader of the compiled library, where it is built and where it is not."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from secateur_kernels import SecateurError, library
from secateur_kernels.library import LibraryStatus, check_capability, require_library
from secateur_kernels.sparse24_linear.cuda_kernels import KERNELS, launch
from secateur_kernels.unpack24 import cuda_kernel as unpack_kernel

BUILT = LibraryStatus(True, Path("lib.so"), ("sm_80", "sm_90a"), "0.1.0")


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80", "sm_90a"), (8, 0), True),
        (("sm_80", "sm_90a"), (8, 9), True),
        (("sm_80", "sm_90a"), (9, 0), True),
        (("sm_80", "sm_90a"), (7, 5), False),
        (("sm_80", "sm_90a"), (10, 0), False),
        (("sm_89",), (8, 6), False),
        (("sm_90a",), (9, 1), False),
        (("sm_80", "compute_80"), (12, 0), True),
        (("compute_80",), (7, 5), False),
        (("sm_80", "compute_80"), (9, 0), False),
        (("sm_90",), (9, 0), False),
        (("sm_120",), (12, 1), True),
        ((), (9, 0), False),
    ],
)
def test_where_it_runs(
    architectures: tuple[str, ...], capability: tuple[int, int], runs: bool
) -> None:
    status = LibraryStatus(True, Path("lib.so"), architectures, "0.1.0")
    assert status.runs_on(capability) is runs
    assert not LibraryStatus(False, None, architectures).runs_on(capability)


def test_another_gpu_is_refused_by_name() -> None:
    check_capability(BUILT, (9, 0), "NVIDIA H200")
    expected = "built for sm_80, sm_90a, but Tesla T4 is sm_75"
    with pytest.raises(SecateurError, match=expected):
        check_capability(BUILT, (7, 5), "Tesla T4")


def test_without_the_file_the_status_says_so(tmp_path: Path) -> None:
    status = library._load(tmp_path / library.NAME)
    assert (status.loaded, status.path, status.version) == (False, None, None)
    assert "not built: this is the pure Python install" in status.reason


def test_a_broken_file_is_no_exception(tmp_path: Path) -> None:
    path = tmp_path / library.NAME
    path.write_bytes(b"no shared library")
    status = library._load(path)
    assert not status.loaded
    assert status.path == path
    assert "cannot be loaded" in status.reason


def test_versions_that_do_not_match() -> None:
    mine = library.__version__
    assert library._mismatch(mine, cuda=13000, driver=0) == ""
    assert library._mismatch(mine, cuda=13000, driver=13010) == ""
    assert library._mismatch(mine, cuda=13010, driver=13000) == ""
    assert "version 0.0.9, but the Python package is" in library._mismatch("0.0.9", 13000, 0)
    expected = "built with CUDA 13.0, but the driver supports CUDA 12.8 at most"
    assert expected in library._mismatch(mine, cuda=13000, driver=12080)


def test_it_is_required_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library_status", lambda: LibraryStatus(False, reason="no nvcc"))
    with pytest.raises(SecateurError, match="the compiled library is not there: no nvcc"):
        require_library(torch.device("cuda"))
    monkeypatch.setattr(library, "library_status", lambda: BUILT)
    with pytest.raises(SecateurError, match=r"expected an NVIDIA GPU .* got cpu"):
        require_library(torch.device("cpu"))


def test_it_is_not_used_on_a_gpu_that_it_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library_status", lambda: BUILT)
    monkeypatch.setattr(library, "_device", lambda index: ((12, 0), "NVIDIA RTX PRO 6000"))
    expected = "built for sm_80, sm_90a, but NVIDIA RTX PRO 6000 is sm_120"
    with pytest.raises(SecateurError, match=expected):
        require_library(torch.device("cuda", 0))


def test_its_functions_say_why_they_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library_status", lambda: LibraryStatus(False, reason="no nvcc"))
    with pytest.raises(SecateurError, match="the compiled library is not there: no nvcc"):
        library.library_functions.__wrapped__()


def test_what_it_could_not_do_is_said_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Functions:
        """A library whose every call fails."""

        def secateur_capture_id(self, stream: int, found: object) -> int:
            return 2

        def secateur_error_text(self, code: int) -> bytes:
            return f"code {code}".encode()

    monkeypatch.setattr(library, "library_functions", Functions)
    with pytest.raises(SecateurError, match="the compiled library says: code 2"):
        library.capture_id(0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_launches_refuse_what_is_not_on_a_gpu(kernel: str) -> None:
    x, data = torch.zeros(1, 64).half(), torch.zeros(1, 1, 4608, dtype=torch.uint8)
    config = KERNELS[kernel].default_config(1, 64, 64, 132, (9, 0))
    # Which of the two reasons comes depends on whether the library is built here.
    with pytest.raises(SecateurError, match="the compiled library"):
        launch(x, data, 64, 64, False, None, None, "none", config)
    with pytest.raises(SecateurError, match="the compiled library"):
        unpack_kernel.launch(data, 64, 64, False, torch.float16)


def test_a_library_from_other_sources_is_not_used(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    source, path = tmp_path / "other.cpp", tmp_path / library.NAME
    source.write_text('extern "C" const char* secateur_version() { return "0.1.0"; }')
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", path], check=True)
    status = library._load(path)
    assert not status.loaded
    assert "was built from other sources: build it anew" in status.reason
