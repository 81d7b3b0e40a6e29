"""The timeline of a layer: marks by clocks of their own, as times of all thread blocks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench import timeline
from bench.gpu_programs import SOURCES, ProgramError
from bench.kernel_records import read_records
from bench.timeline import POINTS, READINGS, Run, table_of, timeline_of, timelines
from torch import Tensor

ROOT = Path(__file__).parents[2]
RUN = Run(
    rows=4096,
    columns=4096,
    tokens=1,
    kernel="skinny",
    config={"warps": 8, "stages": 5, "blocks": 6, "cluster": 2, "lead": 5},
    bytes=18_874_368,
    layers=8,
    multiprocessors=3,
    plain_us=5.5,
)
LAYER_US = 6.0


def passed_at(layer: int, block: int, point: int) -> float:
    """Microseconds: a layer every six, its blocks 0.1 apart, its points 0.5."""
    return LAYER_US * layer + 0.1 * block + 0.5 * point


def numbers_of(run: Run, missing: str = "") -> tuple[Tensor, Tensor]:
    """Clocks and marks of a chain as multiprocessors of different clocks see it."""
    rates = torch.tensor([1.5, 1.7, 1.98], dtype=torch.float64)  # GHz
    offsets = torch.tensor([10**12, 5, 3 * 10**9])
    epoch = 1_764_000_000_000_000_000
    clocks = torch.zeros(2, run.multiprocessors, READINGS, 2, dtype=torch.int64)
    for end, start_us in enumerate((-40.0, 100.0)):
        for reading in range(READINGS):
            nanoseconds = int(1000 * start_us) + 1024 * reading
            clocks[end, :, reading, 0] = offsets + (nanoseconds * rates + 1e6).long()
            clocks[end, :, reading, 1] = epoch + nanoseconds
    marks = torch.zeros(run.layers, run.blocks, len(POINTS) + 1, dtype=torch.int64)
    for layer in range(run.layers):
        for block in range(run.blocks):
            where = block % run.multiprocessors
            marks[layer, block, -1] = where + 1
            for point, name in enumerate(POINTS):
                nanoseconds = 1000 * passed_at(layer, block, point)
                clock = int(nanoseconds * float(rates[where]) + 1e6) + int(offsets[where])
                marks[layer, block, point] = 0 if name == missing else clock
    return clocks, marks


def test_the_points_are_those_of_the_kernel() -> None:
    header = ROOT / "csrc" / "include" / "secateur" / "device" / "marks.h"
    found = re.search(r"enum class Point : int \{(.*?)\};", header.read_text(), re.DOTALL)
    assert found is not None
    names = re.findall(r"^\s*(\w+)", found[1], re.MULTILINE)
    assert names == [*POINTS, "count"]
    assert f"constexpr int readings = {READINGS};" in (SOURCES / "marked.h").read_text()


def test_clocks_of_multiprocessors_become_one_time() -> None:
    found = timeline_of(RUN, *numbers_of(RUN))
    assert found.layer_us == pytest.approx(LAYER_US, abs=0.002)
    # The layer in front ends when its last block passes its last point.
    end = passed_at(-1, RUN.blocks - 1, len(POINTS) - 1)
    for point, name in enumerate(POINTS):
        expected = [passed_at(0, block, point) - end for block in (0, 2, RUN.blocks - 1)]
        assert found.points[name] == pytest.approx(expected, abs=0.002)
    assert found.points["left"] is not None
    assert found.points["left"][2] == pytest.approx(found.layer_us, abs=0.002)
    assert found.clock_ghz == pytest.approx(1.7, abs=0.001)
    assert found.timer_step_ns == 1024
    assert found.clock_error_ns < 1


def test_a_point_that_nobody_passes_is_none() -> None:
    found = timeline_of(RUN, *numbers_of(RUN, missing="summed"))
    assert found.points["summed"] is None
    assert found.points["handed_over"] is not None
    [line] = [line for line in table_of([found]) if line.startswith("summed")]
    assert line.split() == ["summed", "-"]


def test_a_point_that_few_pass_is_of_those() -> None:
    clocks, marks = numbers_of(RUN)
    summed = list(POINTS).index("summed")
    marks[:, 1:, summed] = 0
    marks[3, :, summed] = 0  # and in one layer nobody
    found = timeline_of(RUN, clocks, marks).points["summed"]
    end = passed_at(-1, RUN.blocks - 1, len(POINTS) - 1)
    assert found == pytest.approx([passed_at(0, 0, summed) - end] * 3, abs=0.002)


def test_what_the_program_wrote_is_read_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [RUN, replace(RUN, config=RUN.config | {"lead": 0})]
    numbers = torch.cat([part.flatten() for run in runs for part in numbers_of(run)])
    printed = "noise\n" + "".join(json.dumps(vars(run)) + "\n" for run in runs)
    assert [found.run for found in timelines(printed, numbers)] == runs

    def program(program: Path, file: str, *tokens: str, timeout: float) -> str:
        assert tokens == ("8",)
        # The third was cut.
        Path(file).write_bytes(numbers.numpy().tobytes() + b"cut")
        raise ProgramError("timeline took longer than 1 s", printed)

    monkeypatch.setattr("bench.gpu_programs.build", Path)
    monkeypatch.setattr("bench.gpu_programs.run", program)
    monkeypatch.setattr(timeline, "named_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr("bench.kernel_records.machine_facts", lambda device: {})
    assert timeline.main(["--tokens", "8", "--results", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "failed: timeline took longer" in shown
    title = "4096 x 4096, 1 tokens: skinny, warps 8, stages 5, blocks 6, cluster 2; 18.9 MB"
    [place] = [i for i, line in enumerate(shown.splitlines()) if line.startswith(title)]
    assert shown.splitlines()[place + 1].split() == ["lead", "5", "lead", "0"]
    assert shown.splitlines()[place + 2].count("6.00 (unmarked 5.50)") == 2
    records = read_records("timeline", tmp_path)
    assert [record["config"]["lead"] for record in records] == [5, 0]
    assert set(records[0]["points"]) == set(POINTS)
