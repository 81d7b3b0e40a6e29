"""Timing in turns and tuning, on the CPU: the path, not the figures."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from secateur_kernels import SecateurError, tune
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import DeviceFacts, Problem
from secateur_kernels.library import LibraryStatus
from secateur_kernels.sparse24_linear.cuda_skinny_config import SkinnyConfig
from secateur_kernels.timing import Timing, copies_to_rotate, time_in_turns
from secateur_kernels.tune import TuneShape, empty_table, kernels_not_there, tune_shape

CPU = torch.device("cpu")


def test_calls_take_turns_over_the_copies() -> None:
    seen: list[tuple[str, int]] = []
    timings = time_in_turns(
        {"a": lambda i: seen.append(("a", i)), "b": lambda i: seen.append(("b", i))},
        CPU,
        copies=2,
        rounds=3,
        warmup=1,
    )
    assert seen == [("a", 0), ("b", 0)] + [(name, i % 2) for i in range(3) for name in "ab"]
    assert {name: timing.rounds for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_quartiles() -> None:
    assert Timing.of([4.0]) == Timing(4.0, 4.0, 4.0, 1)
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Timing(3.0, 2.0, 4.0, 5)


def test_rotation_overflows_the_cache() -> None:
    gpu = torch.device("cuda")
    assert copies_to_rotate(1 << 20, CPU) == 1
    assert copies_to_rotate(10_000_000, gpu) == 40
    assert copies_to_rotate(10**9, gpu) == 2
    assert copies_to_rotate(1, gpu) == 256


@pytest.mark.parametrize(
    ("op", "rank", "backends"),
    [
        ("sparse24_linear", 0, {"reference", "dense"}),
        ("low_rank_linear", 5, {"reference", "two_gemms", "dense"}),
        ("sparse24_low_rank_linear", 5, {"reference", "dense"}),
    ],
)
def test_every_candidate_is_measured(op: str, rank: int, backends: set[str]) -> None:
    shape = TuneShape(op, 48, 64, rank)  # type: ignore[arg-type]
    results = list(tune_shape(shape, (1, 3), device="cpu", rounds=2))
    assert [entry.m for entry, _ in results] == [1, 3]
    for entry, failed in results:
        assert not failed
        assert {m.backend for m in entry.measurements} == backends
        assert all(m.microseconds > 0 for m in entry.measurements)
    table = empty_table("cpu").with_entries(entry for entry, _ in results)
    assert (table.device, len(table.entries)) == ("cpu", 2)


def test_variants_are_timed_in_turns_with_what_they_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dense; what takes half as long in the second turns is told as of the first."""
    varied = Choice("reference", SkinnyConfig(warps=4, row_tiles=2, stages=2, blocks=1))
    turns = iter([{"0": 9.0, "1": 8.0}, {"0": 4.0, "1": 3.0}])

    def timed(calls: Mapping[str, object], *rest: object) -> dict[str, Timing]:
        times = next(turns)
        assert set(calls) == set(times)
        return {name: Timing(us, us, us, 1) for name, us in times.items()}

    def variants(problem: Problem, choice: Choice) -> list[Choice]:
        return [varied] if choice.backend == "reference" else []

    monkeypatch.setattr(tune, "time_in_turns", timed)
    monkeypatch.setattr(tune, "variants_to_tune", variants)
    ((entry, failed),) = tune_shape(TuneShape("sparse24_linear", 48, 64), (3,), device="cpu")
    assert not failed
    found = {(m.backend, m.config is None): m.microseconds for m in entry.measurements}
    assert found == {("dense", True): 9.0, ("reference", True): 8.0, ("reference", False): 6.0}


@pytest.mark.parametrize("from_triton", [True, False])
def test_a_candidate_that_fails_leaves_the_others(
    from_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of Triton are no `RuntimeError`: too much shared memory on a smaller GPU, say."""
    kind = type("OutOfResources", (Exception if from_triton else RuntimeError,), {})

    def fails(*arguments: object) -> torch.Tensor:
        raise kind("out of resource: shared memory")

    monkeypatch.setattr(tune, "launch_sparse24", fails)
    ((entry, failed),) = tune_shape(
        TuneShape("sparse24_linear", 48, 64), (3,), device="cpu", rounds=1
    )
    assert [m.backend for m in entry.measurements] == ["dense"]
    assert failed == ["reference with None: out of resource: shared memory"]


def test_dense_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is nothing that the others can be told against."""

    def fails(*arguments: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tune.F, "linear", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(tune_shape(TuneShape("sparse24_linear", 48, 64), (3,), device="cpu", rounds=1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (TuneShape("sparse24_linear", 8, 6), "K divisible by 4"),
        (TuneShape("sparse24_linear", 0, 8), "expected N and K of at least 1"),
        (TuneShape("low_rank_linear", 8, 8, 9), r"expected a rank of 1 to min\(N, K\)"),
        (TuneShape("low_rank_linear", 8, 8), "expected a rank of 1"),
    ],
)
def test_shapes_that_do_not_fit(shape: TuneShape, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        next(tune_shape(shape, (1,), device="cpu"))


def test_kernels_that_are_not_there_are_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = DeviceFacts("gpu", (9, 0), 1, has_triton=True, has_library=True)
    assert kernels_not_there(there) == {}
    neither = replace(there, has_triton=False, has_library=False)
    monkeypatch.setattr(tune, "HAS_TRITON", False)
    monkeypatch.setattr(tune, "library_status", lambda: LibraryStatus(False, reason="not built"))
    assert kernels_not_there(neither) == {
        "cuda": "not built",
        "triton": "the package triton is not installed",
    }
    loaded = LibraryStatus(True, architectures=("sm_80", "sm_90a"))
    monkeypatch.setattr(tune, "HAS_TRITON", True)
    monkeypatch.setattr(tune, "library_status", lambda: loaded)
    assert kernels_not_there(replace(neither, capability=(7, 5))) == {
        "cuda": "it is built for sm_80, sm_90a, not for 7.5",
        "triton": "it needs compute capability 8.0, this device has 7.5",
    }
