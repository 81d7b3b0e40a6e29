"""Candidates that fail, or take their process along, do not keep the others from being measured."""

import sys
from pathlib import Path

import pytest
import torch
from bench import linear_tries, linears
from bench.gpu_steps import Step
from bench.kernel_records import read_records
from bench.linear_timing import Measured
from bench.linear_tries import Tries
from bench.linears import line_of
from bench.run_on_gpu import run_step
from bench.shapes import shape_of

from secateur_kernels.errors import SecateurError
from secateur_kernels.testing.attempts import Attempts, BrokenContextError
from secateur_kernels.timing import Timing

CPU = torch.device("cpu")
TINY = ("--device", "cpu", "--shapes", "tiny", "--op", "sparse24_linear", "--mode", "isolated")
TINY += ("--tokens", "2,3", "--rounds", "1", "--repeats", "1")
# One of ours dies as soon as it is called, another one hangs.
SCRIPT = """
import os, sys, time
from bench import linear_candidates, linears
real = linear_candidates._our_step
def our_step(operands, backend):
    def call(x, index):
        if backend == "unpack":
            os.kill(os.getpid(), 11)
        if backend == "triton" and len(x) == 3 and operands.shape.n == 64:
            time.sleep(60)
        return real(operands, "auto")(x, index)
    return call
linear_candidates._our_step = our_step
raise SystemExit(linears.main(sys.argv[1:]))
"""


def test_what_kills_a_process_is_left_out(tmp_path: Path) -> None:
    results = tmp_path / "results"
    options = (*TINY, "--results", str(results), "--patience", "5")
    command = (sys.executable, "-c", SCRIPT, *options)
    step = Step("bench", command, budget=200, grace=10, silence=60, restarts=True)
    outcome = run_step(step, tmp_path)
    log = (tmp_path / "bench.log").read_text(encoding="utf-8")
    assert outcome.status == 1, log
    assert outcome.last_line == "0 jobs failed, 3 processes died", log
    records = read_records("linears", results)
    assert [(r["shape"], r["tokens"]) for r in records] == [
        ([64, 128], 2),
        ([64, 128], 3),
        ([96, 64], 2),
        ([96, 64], 3),
    ]
    notes = [record["notes"]["ours unpack"] for record in records]
    assert notes[0].startswith("left out: a process died of it")
    assert notes[2] == notes[3] == "left out: 2 processes died of ours unpack; "
    assert all("ours auto" in record["microseconds"] for record in records)
    assert ["ours triton" in record["microseconds"] for record in records] == [
        True,
        False,
        True,
        True,
    ]
    assert "hung: no end after 5 s" in records[1]["notes"]["ours triton"]
    assert "ours unpack left out: " in log


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ValueError])
def test_a_job_that_fails_is_told_and_the_next_one_measured(
    kind: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = linears.make_operands

    def short_of_memory(op: str, shape: linears.WeightShape, *others: object) -> object:
        if shape.n == 96:
            raise kind("out of memory")
        return real(op, shape, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(linears, "make_operands", short_of_memory)
    assert linears.main([*TINY, "--results", str(tmp_path)]) == 1
    assert [record["shape"] for record in read_records("linears", tmp_path)] == [[64, 128]] * 2
    told = capsys.readouterr().out
    assert "sparse24_linear isolated 96 x 64 M=2 bfloat16: failed: out of memory" in told
    assert "2 jobs failed, 0 processes died" in told


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_result_is_told_beside_its_time(error: float) -> None:
    timings = {name: [Timing(2.0, 2.0, 2.0, 1)] for name in ("dense cublas", "ours wide")}
    job = linears.Job("sparse24_linear", "isolated", shape_of(64, 128), 3, "bfloat16")
    right = Measured(timings, {"dense cublas": 0.0017, "ours wide": 0.0017}, {}, 1)
    assert "WRONG" not in line_of(job, right)
    wrong = Measured(timings, {"dense cublas": 0.0017, "ours wide": error}, {}, 1)
    assert line_of(job, wrong).endswith(f"wide 1.00  WRONG: ours wide {error:.2g}")


def tries(tmp_path: Path) -> Tries:
    return Tries(Attempts(tmp_path / "notes.jsonl"), "job", CPU)


def test_an_error_is_a_note(tmp_path: Path) -> None:
    notes = {"one": "cuda with tall tiles"}

    def fails() -> None:
        raise RuntimeError("too much shared memory")

    def refuses() -> None:
        raise SecateurError("no library")

    def fails_in_a_capture() -> None:
        try:
            fails()
        finally:
            raise RuntimeError("capture was invalidated\nSearch for ...")

    class OutOfResources(Exception):
        """Triton's errors are no `RuntimeError`."""

    def does_not_fit() -> None:
        raise OutOfResources("out of resource: shared memory")

    here = tries(tmp_path)
    assert not here.runs("five", "kernel", does_not_fit, notes, "a first call")
    assert notes.pop("five") == "failed: a first call: out of resource: shared memory; "
    assert not here.runs("four", "kernel", fails_in_a_capture, notes, "captured")
    told = notes.pop("four")
    assert told == "failed: captured: too much shared memory, then capture was invalidated; "
    assert not here.runs("one", "kernel", fails, notes, "a first call")
    assert not here.runs("two", "kernel", refuses, notes, "a first call")
    assert here.runs("three", "kernel", lambda: None, notes, "a first call")
    assert notes == {
        "one": "failed: a first call: too much shared memory; cuda with tall tiles",
        "two": "not there: a first call: no library; ",
    }
    assert tries(tmp_path).attempts.deaths == ()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
@pytest.mark.parametrize("alone", [True, False])
def test_an_error_that_breaks_cuda_ends_the_process(
    alone: bool, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: torch.device) -> None:
        raise BrokenContextError("illegal memory access")

    def fails() -> None:
        raise kind("illegal memory access")

    monkeypatch.setattr(linear_tries, "check_usable", broken)
    here = tries(tmp_path)
    with pytest.raises(BrokenContextError):
        here.runs("one", "kernel", fails, {}, "a first call") if alone else here.together(fails)
    after = tries(tmp_path)
    assert [death.why for death in after.attempts.deaths] == ["illegal memory access"]
    assert after.is_hopeless() != alone
    assert after.runs("one", "kernel", lambda: None, {}, "a first call") != alone
