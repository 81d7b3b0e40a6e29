"""The choice of a backend: a pure function of facts and measured times."""

from dataclasses import replace

import pytest
import torch

from secateur_kernels.dispatch import (
    DeviceFacts,
    Entry,
    Measurement,
    Problem,
    Table,
    choose,
    wants_dense_copy,
)
from secateur_kernels.dispatch.candidates import candidates, candidates_to_tune

H200 = DeviceFacts("NVIDIA H200", (9, 0), 132, has_triton=True, has_library=True)
PROBLEM = Problem("sparse24_linear", 8, 4096, 4096, torch.bfloat16, H200)
LOW_RANK = Problem("low_rank_linear", 8, 4096, 4096, torch.bfloat16, H200, rank=1024)


def table(*entries: Entry) -> Table:
    return Table("NVIDIA H200", (9, 0), {}, entries)


def entry(problem: Problem, **microseconds: float) -> Entry:
    return Entry.of(problem, [Measurement(name, None, us) for name, us in microseconds.items()])


def test_the_fastest_measured_backend_wins_and_says_why() -> None:
    choice = choose(PROBLEM, table(entry(PROBLEM, cuda=6.0, triton=9.0, unpack=30.0)))
    assert choice.backend == "cuda"
    assert str(choice) == (
        "cuda: fastest of cuda 6.0 us, triton 9.0 us, unpack 30.0 us, measured at 8 tokens"
    )


def test_a_dense_copy_competes_only_where_one_is_kept() -> None:
    times = table(entry(PROBLEM, cuda=6.0, dense=5.0))
    assert choose(PROBLEM, times).backend == "cuda"
    assert choose(replace(PROBLEM, dense_copy=True), times).backend == "dense"


def test_a_backend_that_is_not_there_is_passed_over() -> None:
    without = replace(PROBLEM, device=replace(H200, has_library=False))
    times = table(entry(PROBLEM, cuda=6.0, triton=9.0, unpack=30.0))
    assert choose(without, times).backend == "triton"


def test_the_next_larger_measured_number_of_tokens_stands_for_one_between() -> None:
    few, many = replace(PROBLEM, m=16), replace(PROBLEM, m=64)
    times = table(entry(few, cuda=6.0, unpack=30.0), entry(many, cuda=50.0, unpack=31.0))
    assert choose(replace(PROBLEM, m=16), times).backend == "cuda"
    assert choose(replace(PROBLEM, m=17), times).backend == "unpack"
    assert choose(replace(PROBLEM, m=9000), times).reason.endswith("measured at 64 tokens")


def test_a_shape_like_a_measured_one_borrows_its_times() -> None:
    times = table(entry(PROBLEM, cuda=6.0, unpack=3.0))
    near = choose(replace(PROBLEM, n=5120), times)
    assert near.backend == "unpack"
    assert near.reason.endswith("measured at 8 tokens for [4096, 4096]")
    far = choose(replace(PROBLEM, n=8192), times)
    assert "a rule of thumb: no shape like it was measured on NVIDIA H200" in far.reason


@pytest.mark.parametrize(
    "other",
    [
        replace(PROBLEM, dtype=torch.float16),
        replace(PROBLEM, op="low_rank_linear", rank=64),
        replace(PROBLEM, n=1),
    ],
)
def test_times_of_other_problems_do_not_count(other: Problem) -> None:
    assert "rule of thumb" in choose(other, table(entry(PROBLEM, unpack=1.0))).reason


def test_times_of_other_devices_do_not_count() -> None:
    times = replace(table(entry(PROBLEM, unpack=1.0)), device="NVIDIA A100")
    assert "nothing measured on NVIDIA H200" in choose(PROBLEM, times).reason


def test_rules_of_thumb() -> None:
    assert choose(PROBLEM, None).backend == "cuda"
    bare = replace(H200, has_library=False)
    assert choose(replace(PROBLEM, device=bare), None).backend == "triton"
    assert choose(replace(PROBLEM, device=bare, m=4096), None).backend == "unpack"
    assert choose(replace(PROBLEM, device=bare, m=4096, dense_copy=True), None).backend == "dense"
    old = replace(bare, has_triton=False)
    assert choose(replace(PROBLEM, device=old), None).backend == "unpack"
    assert choose(LOW_RANK, None).backend == "cuda"
    assert choose(replace(LOW_RANK, m=32), None).backend == "triton"
    assert choose(replace(LOW_RANK, device=bare), None).backend == "triton"
    assert choose(replace(LOW_RANK, m=512), None).backend == "two_gemms"
    assert choose(replace(LOW_RANK, dtype=torch.float32), None).backend == "two_gemms"
    assert choose(replace(LOW_RANK, rank=1000), None).backend == "two_gemms"
    both = replace(LOW_RANK, op="sparse24_low_rank_linear", m=512)
    assert choose(both, None).backend == "unpack"


def test_a_chosen_config_fits_its_backend() -> None:
    for problem in (PROBLEM, LOW_RANK, replace(LOW_RANK, op="sparse24_low_rank_linear")):
        for choice in candidates(problem):
            configured = choice.backend in ("cuda", "triton")
            assert (choice.config is not None) == configured, choice


def test_tuning_tries_every_backend_and_several_configs() -> None:
    tried = candidates_to_tune(replace(PROBLEM, dense_copy=True))
    assert {choice.backend for choice in tried} == {"cuda", "triton", "unpack", "dense"}
    assert len([choice for choice in tried if choice.backend == "triton"]) > 1


def test_policies() -> None:
    slow = replace(PROBLEM, m=64)
    times = table(entry(PROBLEM, cuda=6.0, dense=9.0), entry(slow, cuda=9.6, dense=9.0))
    assert wants_dense_copy(PROBLEM, times, "memory", (8, 64)) == (
        False,
        "policy memory: one packed copy",
    )
    wanted, why = wants_dense_copy(PROBLEM, times, "strict", (8, 64))
    assert wanted
    assert why.startswith("dense is faster at 64 tokens (dense 9.0 us, cuda 9.6 us")
    assert not wants_dense_copy(PROBLEM, times, "strict", (8,))[0]
    assert not wants_dense_copy(PROBLEM, None, "strict", (8, 64))[0]


def test_problems_print_themselves() -> None:
    assert str(replace(LOW_RANK, groups=3)) == (
        "low_rank_linear of 8 tokens with a weight [4096, 4096], rank 1024 in 3 groups, bfloat16, "
        "on NVIDIA H200"
    )
