"""Microbenchmarks: what is read of their output, what is predicted, and when they are compiled."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bench import gpu_programs, microbench
from bench.gpu_programs import BUILT, SOURCES, build, program_names, run, sources_of
from bench.kernel_records import read_records
from bench.microbench import PROGRAMS, line_of, readings_of
from bench.microbench_predictions import PREDICTED, prediction_of

from secateur_kernels.dispatch.problem import DeviceFacts


def test_every_program_is_run() -> None:
    assert set(program_names()) == {*PROGRAMS, "one_hot_probe", "timeline"}


def test_lines_are_read_and_others_left() -> None:
    printed = 'noise\n{"name": "launch of nothing", "value": 1.5, "unit": "us"}\n'
    [reading] = readings_of("launch", printed)
    assert (reading.program, reading.value, reading.unit) == ("launch", 1.5, "us")
    assert reading.as_record()["predicted"] == 2.0
    assert "predicted       2 ( 0.75 of it): a guess" in line_of(reading)
    [unknown] = readings_of("launch", '{"name": "bytes of it", "value": 9.7, "unit": "MB"}')
    assert line_of(unknown).endswith("9.7 MB")


def test_the_longest_prefix_decides() -> None:
    def expected(name: str) -> float | None:
        found = prediction_of(name)
        return None if found is None else found.value

    assert expected("fixed cost of a layer") == expected("fixed cost of a layer, dependent") == 3.5
    assert expected("fixed cost of a layer, dependent with prefetch") == 1.4
    assert expected("wgmma.sp m64n128, 2 warpgroups, clocks an instruction") == 64
    assert expected("wgmma.sp m64n128, 2 warpgroups, dense-equivalent rate") == 1150
    assert expected("wgmma m64n128, 1 warpgroup, dense-equivalent rate") == 700
    assert expected("wgmma m64n128, 1 warpgroup, multiprocessor clock") == 1.75
    assert expected("something else") is None


def test_what_is_predicted_is_measured() -> None:
    """A name in the sources begins, or is begun by, every name that a figure is predicted for."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.cu")))
    for name in PREDICTED:
        assert name.split(",")[0].rsplit(" of ")[0].split(" m64")[0] in text, name


def test_sources_are_followed_through_their_headers() -> None:
    names = {path.name for path in sources_of(SOURCES / "memory.cu")}
    assert {"memory.cu", "stream.h", "harness.h", "device.h", "cluster.h", "launch.h"} <= names
    assert "warpgroup.h" not in names


def test_what_was_compiled_of_these_sources_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    (tmp_path / "launch").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "launch").chmod(0o755)
    with pytest.raises(RuntimeError, match="not compiled from these sources, and nvcc is not"):
        build("launch", tmp_path)
    (tmp_path / "launch.sources").write_text(gpu_programs.fingerprint("launch"))
    assert run(build("launch", tmp_path)) == "here\n"


def test_a_program_that_fails_or_hangs_is_an_error(tmp_path: Path) -> None:
    python = Path(sys.executable)
    with pytest.raises(RuntimeError, match="ended with 3: so it is"):
        run(python, "-c", "import sys; print('so it is', file=sys.stderr); sys.exit(3)")
    with pytest.raises(RuntimeError, match="took longer than 0 s"):
        run(python, "-c", "import time; time.sleep(30)", timeout=0.2)


def test_one_failure_does_not_spoil_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(program: Path, timeout: float) -> str:
        if program.name == "tensor":
            raise RuntimeError("tensor ended with 1")
        return json.dumps({"name": program.name, "value": 1, "unit": "us"})

    monkeypatch.setattr(gpu_programs, "build_all", lambda names: [])
    monkeypatch.setattr(gpu_programs, "build", Path)
    monkeypatch.setattr(gpu_programs, "run", printed)
    monkeypatch.setattr(microbench, "named_device", lambda: torch.device("cuda", 0))
    h100 = DeviceFacts("NVIDIA H100 80GB HBM3", (9, 0))
    monkeypatch.setattr(microbench, "device_facts", lambda device: h100)
    monkeypatch.setattr(microbench, "append_record", _append_without_a_gpu)
    assert microbench.main(["--results", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "this is NVIDIA H100 80GB HBM3: what is predicted is an NVIDIA H200's" in said
    assert "failed: tensor; left: none" in said
    names = [record["name"] for record in read_records("microbenchmarks", tmp_path)]
    assert names == [name for name in PROGRAMS if name != "tensor"]
    assert microbench.main(["launch", "--budget", "0", "--results", str(tmp_path)]) == 75
    with pytest.raises(SystemExit):
        microbench.main(["no such program"])


def _append_without_a_gpu(name: str, values: object, device: object, folder: Path) -> None:
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_no_program_spills() -> None:
    for program in gpu_programs.build_all():
        log = (BUILT / f"{program.name}.log").read_text(encoding="utf-8")
        spills = [line for line in log.splitlines() if "bytes spill stores" in line]
        assert spills
        assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in spills)
        assert "serialized" not in log
