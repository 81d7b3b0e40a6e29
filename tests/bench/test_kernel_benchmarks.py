"""Kernel benchmarks run on the CPU at tiny sizes: what they record, and that they resume."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import gpu_facts, linear_candidates, linear_timing, linears, packing, tune
from bench.cusparselt import why_not
from bench.exit_status import AGAIN, BROKEN
from bench.kernel_records import made_here, read_records
from bench.kernel_tables import tables
from bench.linear_candidates import candidates_for
from bench.linear_operands import LOW_RANK, SPARSE, make_operands
from bench.linear_timing import Chain, Measured
from bench.published import wanda_half_of_each_row, wanda_two_of_four
from bench.shapes import LARGEST_FOUR, MODELS, SEVEN, SHAPES, drawn, shape_of

from secateur_kernels import dependent_launch
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import DeviceFacts, device_facts
from secateur_kernels.dispatch.table import Entry, Measurement, load_table, table_path
from secateur_kernels.pack24.op import pack24
from secateur_kernels.testing.attempts import BrokenContextError
from secateur_kernels.threshold.op import keep_largest_per_row
from secateur_kernels.timing import Timing
from secateur_kernels.tune import TuneShape, empty_table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.*")

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--shapes", "tiny", "--rounds", "1"]


def test_shapes_are_those_of_the_models() -> None:
    sizes = {(shape.n, shape.k) for shape in SHAPES}
    assert set(SEVEN) <= sizes
    assert set(LARGEST_FOUR) <= set(SEVEN)
    assert len(sizes) == len(SHAPES)
    assert shape_of(6144, 4096).layers == ("Llama-3-8B q/k/v", "Qwen3-8B q/k/v")
    assert shape_of(24576, 4096).layers == ("Qwen3-8B gate/up",)
    assert {model.name for model in MODELS} == {"Llama-3-8B", "Llama-3-70B", "Qwen3-8B"}
    assert shape_of(4096, 14336).rank == 1024
    assert shape_of(12, 34).layers == ()


def test_drawn_shapes_depend_on_the_seed_alone() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    for shape, m in drawn(3, 200):
        assert shape.n % 64 == shape.k % 64 == 0
        assert 512 <= min(shape.n, shape.k) <= max(shape.n, shape.k) <= 32768
        assert 1 <= m <= 8192


def test_linears_are_recorded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--repeats", "2", "--tokens", "1,3", "--results", str(tmp_path)]
    assert linears.main([*arguments, "--budget", "0"]) == AGAIN
    assert "16 of 16 left: run again" in capsys.readouterr().out
    assert linears.main(arguments) == 0
    assert "all 16 are recorded" in capsys.readouterr().out
    records = read_records("linears", tmp_path)
    assert len(records) == 16
    assert linears.main(arguments) == 0
    assert len(read_records("linears", tmp_path)) == 16
    for record in records:
        assert made_here(record, CPU)
        assert {"dense", "ours auto"} <= set(record["microseconds"])
        assert ("two products" in record["microseconds"]) == (record["op"] == LOW_RANK)
        assert record["baseline"]["microseconds"] <= record["microseconds"]["dense"]
        assert all(len(repeats) == 2 for repeats in record["quartiles"].values())
        assert record["errors"]["ours auto"] < 0.01
        assert record["notes"]["ours cuda"].startswith("not there: ")
    assert tables(tmp_path, "cpu")["sparse24-isolated"].count("\n") == 4


def test_a_quick_run_counts_for_quick_runs_only(tmp_path: Path) -> None:
    arguments = [*TINY, "--op", SPARSE, "--mode", "chain", "--tokens", "2"]
    arguments += ["--results", str(tmp_path), "--extent"]
    for _ in range(2):
        assert linears.main([*arguments, "quick"]) == 0
    quick = read_records("linears", tmp_path)
    assert len(quick) == 2
    assert set(quick[0]["microseconds"]) == {"dense", "ours auto", "serial auto"}
    for extent in ("competitors", "full", "quick"):
        assert linears.main([*arguments, extent]) == 0
    extents = [record["extent"] for record in read_records("linears", tmp_path)]
    assert extents == ["quick", "quick", "competitors", "competitors", "full", "full"]


def test_only_a_chain_launches_dependents(monkeypatch: pytest.MonkeyPatch) -> None:
    forced: dict[str, set[bool | None]] = {}

    def step(name: str) -> linear_candidates.Step:
        def call(x: torch.Tensor, index: int) -> torch.Tensor:
            forced.setdefault(name, set()).add(dependent_launch._forced.get())
            return torch.zeros(len(x), 96, dtype=x.dtype)

        return call

    def candidates(*arguments: object, **options: object) -> linear_candidates.Candidates:
        steps = {name: step(name) for name in ("dense", "ours auto")}
        return linear_candidates.Candidates(steps)

    monkeypatch.setattr(linear_timing, "candidates_for", candidates)
    operands = make_operands(SPARSE, shape_of(96, 64), torch.bfloat16, CPU)
    linear_timing.measure(operands, 2, "isolated", CPU, 1, 1)
    # None: once each for its error, outside of what is timed.
    assert forced == {"dense": {False, None}, "ours auto": {False, None}}
    forced.clear()
    measured = linear_timing.measure(operands, 2, "chain", CPU, 1, 1)
    assert "serial auto" in measured.timings
    assert forced == {"dense": {None}, "ours auto": {None, False}}


H200 = DeviceFacts("NVIDIA H200", (9, 0), 132, has_triton=True, has_library=True)


def test_compiled_kernels_are_candidates_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own config, and launched with it."""
    launched: list[Choice] = []

    def launch(choice: Choice, x: torch.Tensor, *others: object) -> torch.Tensor:
        launched.append(choice)
        return torch.zeros(len(x), 96, dtype=x.dtype)

    monkeypatch.setattr(linear_candidates, "device_facts", lambda device: H200)
    monkeypatch.setattr(linear_candidates.sparse24_launch, "launch", launch)
    operands = make_operands(SPARSE, shape_of(96, 64), torch.bfloat16, CPU)
    for m, names in ((2, {"skinny", "wide", "tiles"}), (300, {"wide", "tiles"})):
        launched.clear()
        x = torch.zeros(m, 64, dtype=torch.bfloat16)
        found = candidates_for(operands, x, False, ["kernels"])
        assert {name.removeprefix("ours ") for name in found.steps} == {"dense", *names}
        assert {choice.config.kernel for choice in launched} == names
        assert found.notes["ours wide"].startswith("cuda with WideConfig(")


def test_records_of_another_version_do_not_count(tmp_path: Path) -> None:
    record = {
        "machine": {"device": "cpu"},
        "versions": {"secateur": "0.0.0", "torch": torch.__version__},
    }
    assert not made_here(record, CPU)


def test_parts_share_all_jobs_out(tmp_path: Path) -> None:
    options = linears.options_of(["--device", "cpu"])
    jobs = linears.jobs_of(options)
    parts = [linears.part_of(jobs, part, 6) for part in range(1, 7)]
    assert sorted(job.key for part in parts for job in part) == sorted(job.key for job in jobs)
    assert all(parts)
    for part in parts:
        weights = [(job.op, job.shape) for job in part]
        # Those of one weight follow each other: it is made once.
        assert len(set(weights)) == 1 + sum(a != b for a, b in pairwise(weights))
    assert {job.mode for job in jobs if job.m > linears.CHAIN_TOKENS} == {"isolated"}
    with pytest.raises(SystemExit):
        linears.options_of(["--part", "7/6"])


def test_a_chain_feeds_each_layer_what_the_last_one_wrote() -> None:
    seen: list[float] = []

    def step(x: torch.Tensor, index: int) -> torch.Tensor:
        seen.append(float(x[0, 0]))
        return (x[:, :1] + 1).expand(1, 6)

    chain = Chain(step, torch.zeros(1, 4), 6)
    for index in (0, 1, 2, 0, 1):
        chain(index)
    assert seen == [0, 1, 2, 0, 1]
    apart = Chain(step, torch.zeros(1, 8), 6)
    assert [float(apart(index)[0, 0]) for index in (0, 1, 2)] == [1, 1, 1]


def test_the_baseline_is_the_fastest_dense_median() -> None:
    timings = {
        "dense a": [Timing(5.0, 4.0, 6.0, 3), Timing(3.0, 2.0, 4.0, 3)],
        "dense b": [Timing(4.0, 4.0, 6.0, 3), Timing(4.5, 2.0, 4.0, 3)],
        "ours auto": [Timing(2.0, 2.0, 2.0, 3), Timing(4.0, 2.0, 2.0, 3)],
    }
    measured = Measured(timings, {}, {}, 1)
    assert measured.fastest("dense") == ("dense a", 3.0)
    assert measured.fastest("cusparselt") is None
    assert measured.microseconds("ours auto") == 3.0
    assert measured.as_record()["baseline"] == {"name": "dense a", "microseconds": 3.0}


def test_packing_is_recorded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--shapes", "64x64", "--rounds", "1"]
    arguments += ["--results", str(tmp_path)]
    assert packing.main(arguments) == 0
    assert capsys.readouterr().out.count("of the copy ceiling") == 6
    records = read_records("packing", tmp_path)
    assert packing.main(arguments) == 0
    assert read_records("packing", tmp_path) == records
    by_name = {record["work"]: record for record in records}
    fused = by_name["Wanda 2:4, score to packed"]
    assert fused["bytes"] == 64 * 64 * 3.125
    assert fused["published_ms"] > 0
    assert "published_ms" not in by_name["unpack to dense"]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_packing_that_fails_leaves_the_rest(
    kind: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: object) -> torch.Tensor:
        raise kind("no compiler for Triton")

    monkeypatch.setattr(packing, "unpack24", fails)
    arguments = ["--device", "cpu", "--shapes", "64x64", "--rounds", "1"]
    assert packing.main([*arguments, "--results", str(tmp_path)]) == 1
    assert len(read_records("packing", tmp_path)) == 5
    assert "64 x 64  failed: no compiler for Triton" in capsys.readouterr().out


def test_the_published_code_makes_our_masks() -> None:
    score = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))
    ours = pack24(score, score=score).keep_mask
    assert ours is not None
    assert torch.equal(wanda_two_of_four(score), ours)
    assert torch.equal(wanda_half_of_each_row(score), keep_largest_per_row(score, 32))


def test_tuning_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--output", str(tmp_path), "--op", SPARSE]
    assert tune.main([*arguments, "--tokens", "1"]) == 0
    path = next(tmp_path.iterdir())
    assert len(load_table(path).entries) == 2
    assert tune.main([*arguments, "--tokens", "1,3", "--budget", "-1"]) == AGAIN
    assert "2 left: run again" in capsys.readouterr().out
    assert tune.main([*arguments, "--tokens", "1,3"]) == 0
    assert {(e.n, e.m) for e in load_table(path).entries} == {(96, 1), (96, 3), (64, 1), (64, 3)}


def test_tuning_without_some_backends_is_completed_later(tmp_path: Path) -> None:
    """On a CPU the backends are `reference` and dense; an entry of one is made again with both."""
    arguments = [*TINY, "--output", str(tmp_path), "--op", SPARSE, "--tokens", "1,3"]
    assert tune.main([*arguments, "--backends", "cuda", "unpack"]) == 0
    path = next(tmp_path.iterdir())
    for entry in load_table(path).entries:
        assert [m.backend for m in entry.measurements] == ["dense"]
        assert entry.left_out == ("reference",)
    before = path.read_bytes()
    assert tune.main([*arguments, "--backends", "cuda"]) == 0
    assert path.read_bytes() == before
    assert tune.main([*arguments, "--budget", "-1"]) == AGAIN
    assert tune.main([*arguments, "--backends", "reference"]) == 0
    for entry in load_table(path).entries:
        assert {m.backend for m in entry.measurements} == {"dense", "reference"}
        assert entry.left_out == ()


def test_tuning_keeps_what_it_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Entry(
        SPARSE, 1, 64, 128, 0, 1, "bfloat16", (Measurement("cuda", None, 2.0),), ("dense",)
    )
    empty_table(CPU).with_entries([held]).save(table_path(tmp_path, device_facts(CPU)))
    asked: list[set[str]] = []

    def tuned(shape: TuneShape, tokens: list[int], *rest: Any) -> Iterator[Any]:
        asked.append(rest[-1])
        yield from ()

    monkeypatch.setattr(tune, "tune_shape", tuned)
    list(tune.run([TuneShape(SPARSE, 64, 128)], [1], CPU, tmp_path, 60, 1, ["dense"]))
    assert asked == [{"cuda", "dense"}]


def test_tuning_begins_nothing_that_ends_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries of 40 s: two fit into 90 s, and a third would not."""
    clock = [0.0]

    def tuned(shape: TuneShape, tokens: list[int], *rest: Any) -> Iterator[Any]:
        for m in tokens:
            clock[0] += 40
            yield Entry(shape.op, m, shape.n, shape.k, 0, 1, "bfloat16", ()), []

    monkeypatch.setattr(tune, "tune_shape", tuned)
    monkeypatch.setattr(tune.time, "monotonic", lambda: clock[0])
    shapes = [TuneShape(SPARSE, 64, 128), TuneShape(SPARSE, 96, 64)]
    assert len(list(tune.run(shapes, [1, 2, 3], CPU, tmp_path, 90))) == 2
    assert len(list(tune.run(shapes, [1, 2, 3], CPU, tmp_path, 90))) == 2


def test_tuning_goes_on_without_what_fails_or_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tokens need too much memory, four break CUDA: the next process leaves only these out."""

    def tuned(shape: TuneShape, tokens: list[int], *rest: Any) -> Iterator[Any]:
        for m in tokens:
            if m == 2:
                raise RuntimeError("out of memory")
            if m == 4:
                raise BrokenContextError("illegal address")
            measured = (Measurement("dense", None, 2.0),)
            yield Entry(shape.op, m, shape.n, shape.k, 0, 1, "bfloat16", measured), []

    monkeypatch.setattr(tune, "tune_shape", tuned)
    arguments = ["--shapes", "tiny", "--op", SPARSE, "--tokens", "1,2,4,8", "--patience", "60"]
    arguments += ["--device", "cpu", "--output", str(tmp_path)]
    for _ in range(2):  # one death for each of the two weights
        assert tune.main(arguments) == BROKEN
        assert "CUDA cannot be used any more: illegal address" in capsys.readouterr().out
    assert tune.main(arguments) == AGAIN
    said = capsys.readouterr().out
    assert "failed: sparse24_linear [96, 64] M=2: out of memory" in said
    assert "a process died of sparse24_linear [64, 128] M=4: illegal address" in said
    assert said.endswith("4 left: run again\n")
    path = table_path(tmp_path, device_facts(CPU))
    assert sorted(entry.m for entry in load_table(path).entries) == [1, 1, 8, 8]
    # Without patience nothing is noted, and nothing left out.
    with pytest.raises(BrokenContextError):
        list(tune.run([TuneShape(SPARSE, 96, 64)], [4], CPU, tmp_path, 60))


def test_cusparselt_says_why_it_is_missing() -> None:
    assert why_not(CPU) == "no NVIDIA GPU"


def test_the_rate_of_a_product() -> None:
    started = time.perf_counter()
    rate = gpu_facts.product_rate(torch.float32, 256, CPU)
    taken = time.perf_counter() - started
    # Seven products of 2 * 256**3 operations were made in that time, one of them in the median.
    assert 2 * 256**3 / taken < rate < 1e15
