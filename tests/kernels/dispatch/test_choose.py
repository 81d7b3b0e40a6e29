"""The choice of a backend: a pure function of facts and measured times."""

from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from thoroughness import most_telling

from secateur_kernels.dispatch import (
    DeviceFacts,
    Entry,
    Measurement,
    Problem,
    Table,
    choose,
    wants_dense_copy,
)
from secateur_kernels.dispatch.candidates import (
    candidates,
    candidates_to_tune,
    configs_to_tune,
    low_rank_shape,
    variants_to_tune,
)
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import Op, device_facts
from secateur_kernels.library import library_status
from secateur_kernels.low_rank_linear.cuda_config import (
    down_shared_bytes,
    shared_bytes_of,
    up_shared_bytes,
)
from secateur_kernels.sparse24_linear.cuda_skinny_config import MAX_TOKENS, grid
from secateur_kernels.sparse24_linear.cuda_wide_config import groups_of

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


def measured_config(problem: Problem, backend: str, index: int) -> Entry:
    """One config is the fastest of all that tuning would try."""
    config = configs_to_tune(problem, backend)[index]
    return Entry.of(problem, [Measurement(backend, asdict(config), 6.0)])


def legal(problem: Problem, config: Any) -> None:
    """Of the kernel's own choice for these sizes: what its library takes."""
    tried = [Choice("cuda", division) for division in configs_to_tune(problem, "cuda")]
    tried += [variant for choice in tried for variant in variants_to_tune(problem, choice)]
    assert config in [choice.config for choice in tried]
    m, n, k = problem.m, problem.n, problem.k
    if problem.op == "low_rank_linear":
        shape, shared = low_rank_shape(problem), shared_bytes_of(H200.capability)
        assert down_shared_bytes(config, m) <= shared
        assert up_shared_bytes(config, shape) <= shared
    elif config.kernel == "skinny":
        row_blocks, steps = grid(config.block_rows, n, k)
        assert m <= MAX_TOKENS
        assert config.blocks <= row_blocks * steps
        assert config.cluster == 1 or config.blocks == row_blocks * config.cluster
    elif config.kernel == "wide":
        cluster = (config.cluster_rows, config.cluster_tokens)
        groups = groups_of(config.tile, cluster, m, n)
        clusters = config.blocks // config.cluster
        assert config.blocks % config.cluster == 0
        assert config.waves <= -(-groups // clusters)


@pytest.mark.parametrize(("before", "after"), list(pairwise((1, 16, 64, 512, 1024))))
@pytest.mark.parametrize(
    "size", most_telling([(4096, 4096), (1000, 2820), (8192, 1024)], [(1000, 2820)])
)
@pytest.mark.parametrize("op", ["sparse24_linear", "low_rank_linear"])
def test_a_config_of_another_size_can_run(
    op: Op, size: tuple[int, int], before: int, after: int
) -> None:
    """Whichever was the fastest at the next larger M, or for a shape alike."""
    n, k = size
    rank = 256 if op == "low_rank_linear" else 0
    there = Problem(op, after, n, k, torch.bfloat16, H200, rank=rank)
    if not any(choice.backend == "cuda" for choice in candidates(there)):
        pytest.skip("the compiled low-rank kernels are for at most 64 tokens")
    for index in range(len(configs_to_tune(there, "cuda"))):
        times = table(measured_config(there, "cuda", index))
        measured = dict(times.entries[0].measurements[0].config or {})
        for m, rows in ((before + 1, n), (after, n), (after, n + 640), (after, n * 2 // 3)):
            problem = replace(there, m=m, n=rows)
            choice = choose(problem, times)
            assert choice.backend == "cuda"
            assert f"measured at {after} tokens" in choice.reason
            legal(problem, choice.config)
            if op == "sparse24_linear":
                assert choice.config.kernel == measured["kernel"] or measured["kernel"] == "skinny"
        assert asdict(choose(there, times).config) == measured


def test_a_config_of_the_same_size_is_the_measured_one() -> None:
    """Also where tuning would no longer try it; for other sizes the next like it is taken."""
    config = replace(configs_to_tune(PROBLEM, "cuda")[0], stages=2)
    times = table(Entry.of(PROBLEM, [Measurement("cuda", asdict(config), 6.0)]))
    assert choose(PROBLEM, times).config == config
    near = choose(replace(PROBLEM, m=7), times).config
    assert near in configs_to_tune(replace(PROBLEM, m=7), "cuda")
    assert (near.kernel, near.warps, near.blocks) == (config.kernel, config.warps, config.blocks)


@pytest.mark.parametrize("problem", [PROBLEM, replace(PROBLEM, m=128), LOW_RANK], ids=str)
def test_moments_are_taken_over_for_tokens_between(problem: Problem) -> None:
    """When the next kernel may start, and how far ahead weights are asked for: tuned last."""

    def moments(config: Any) -> dict[str, int]:
        names = {"lead", "late", "ahead", "down_ahead", "up_ahead"}
        return {name: value for name, value in asdict(config).items() if name in names}

    large = replace(problem, n=57344, k=8192, rank=2048 if problem.rank else 0)
    fastest = Choice("cuda", configs_to_tune(large, "cuda")[0])
    varied = variants_to_tune(large, fastest)
    assert len(varied) > 2
    for variant in varied:
        times = table(Entry.of(large, [Measurement("cuda", asdict(variant.config), 6.0)]))
        config = choose(replace(large, m=large.m - 1), times).config
        assert moments(config) == moments(variant.config)


def test_more_tokens_than_were_measured_with_a_kernel_that_takes_them() -> None:
    times = table(measured_config(PROBLEM, "cuda", 0))
    assert times.entries[0].measurements[0].config["kernel"] == "skinny"  # type: ignore[index]
    problem = replace(PROBLEM, m=500)
    assert choose(problem, times).config.kernel == "wide"
    # The compiled low-rank kernels take no such number: another backend does.
    low_rank = table(measured_config(LOW_RANK, "cuda", 0))
    assert choose(replace(LOW_RANK, m=500), low_rank).backend == "two_gemms"


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
    assert choose(replace(PROBLEM, device=bare, m=64), None).backend == "triton"
    assert choose(replace(PROBLEM, device=bare, m=65), None).backend == "unpack"
    assert choose(replace(PROBLEM, device=bare, m=4096, dense_copy=True), None).backend == "dense"
    old = replace(bare, has_triton=False)
    assert choose(replace(PROBLEM, device=old), None).backend == "unpack"
    assert choose(replace(LOW_RANK, device=old), None).backend == "two_gemms"
    assert choose(LOW_RANK, None).backend == "cuda"
    assert choose(replace(LOW_RANK, m=9), None).backend == "two_gemms"
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


@pytest.mark.parametrize("op", ["sparse24_linear", "low_rank_linear", "sparse24_low_rank_linear"])
def test_configs_to_tune_are_of_the_kernel_that_takes_them(op: Op) -> None:
    problem = PROBLEM if op == "sparse24_linear" else replace(LOW_RANK, op=op)
    for choice in candidates(problem):
        kinds = {type(config) for config in configs_to_tune(problem, choice.backend)}
        assert (type(choice.config) in kinds) == bool(kinds) == (choice.config is not None)


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
    # One packed form that is fast is enough, and 3% are not worth a copy.
    several = table(entry(PROBLEM, unpack=30.0, cuda=9.2, dense=9.0))
    assert not wants_dense_copy(PROBLEM, several, "strict", (8,))[0]


@pytest.mark.parametrize("has_triton", [False, True])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_facts_of_a_gpu(
    capability: tuple[int, int], has_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = capability
    monkeypatch.setattr("secateur_kernels.dispatch.problem.HAS_TRITON", has_triton)
    properties = SimpleNamespace(name="N", major=major, minor=minor, multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    facts = device_facts.__wrapped__(torch.device("cuda"))
    # Triton compiles our kernels from Ampere on.
    is_compiled_for = library_status().runs_on(capability)
    assert facts == DeviceFacts("N", capability, 7, has_triton and major >= 8, is_compiled_for)
    assert facts.is_gpu


def test_problems_print_themselves() -> None:
    assert str(replace(LOW_RANK, groups=3)) == (
        "low_rank_linear of 8 tokens with a weight [4096, 4096], rank 1024 in 3 groups, bfloat16, "
        "on NVIDIA H200"
    )
