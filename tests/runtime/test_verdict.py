"""In which form layers should run, by measured times alone: no tensors, no GPU."""

from typing import Any

import pytest
import torch

from secateur.runtime.layers import Form, LayerFacts
from secateur.runtime.verdict import NO_CLAIM, Circumstances, Verdict, judge
from secateur_kernels.dispatch import (
    CPU,
    DeviceFacts,
    Entry,
    Measurement,
    Problem,
    Table,
    gain_over_dense,
)

BF16 = torch.bfloat16
H200 = DeviceFacts("NVIDIA H200", (9, 0), 132, has_triton=True)
OPS: dict[Form, Any] = {
    "2:4": "sparse24_linear",
    "low-rank": "low_rank_linear",
    "2:4+low-rank": "sparse24_low_rank_linear",
}


def entry(form: Form, m: int, dense: float, n: int = 4096, **others: float) -> Entry:
    rank = 0 if form == "2:4" else 512
    problem = Problem(OPS[form], m, n, 4096, BF16, H200, rank)
    times = {"dense": dense, **others}
    return Entry.of(problem, [Measurement(b, None, t) for b, t in times.items() if t])


def table(*entries: Entry, device: DeviceFacts = H200) -> Table:
    return Table(device.name, device.capability, {}, entries)


def layer(form: Form = "dense", rows: int = 4096, **more: Any) -> LayerFacts:
    rank, dtype = 512 if "low" in form else 0, more.pop("dtype", BF16)
    return LayerFacts(f"layer{rows}", (rows, 4096), dtype, form, rank=rank, **more)


def judged(
    facts: LayerFacts | tuple[LayerFacts, ...],
    times: Table | None,
    policy: Any = "memory",
    tokens: tuple[int, ...] = (1, 1024),
    device: DeviceFacts = H200,
    force: bool = False,
) -> Verdict:
    layers = facts if isinstance(facts, tuple) else (facts,)
    return judge(layers, Circumstances(device, times, policy, tokens, force))


FASTER = table(entry("2:4", 1, 10, unpack=4), entry("2:4", 1024, 10, unpack=8))
SLOWER = table(entry("2:4", 1, 4, unpack=10), entry("2:4", 1024, 4, unpack=5))
FASTER_AT_ONE = table(entry("2:4", 1, 10, unpack=4), entry("2:4", 1024, 4, unpack=8))
ZEROS = layer(could_be_24=True)


@pytest.mark.parametrize("policy", ["memory", "strict"])
def test_a_dense_layer_with_zeros(policy: str) -> None:
    assert judged(ZEROS, FASTER, policy) == Verdict(
        "2:4",
        "1.77 times as fast as dense (unpack 4.0 us, dense 10.0 us, measured at 1 tokens; "
        "unpack 8.0 us, dense 10.0 us, measured at 1024 tokens)",
    )
    slower = judged(ZEROS, SLOWER, policy)
    assert slower.form == "dense"
    assert slower.reason.startswith("dense is faster (dense 4.0 us, unpack 10.0 us, measured at 1")
    assert judged(layer(), FASTER, policy) == Verdict("dense", "dense weights")
    single = layer(could_be_24=True, dtype=torch.float32)
    assert judged(single, FASTER, policy) == Verdict("dense", "2:4, but float32 cannot be packed")


def test_every_number_of_tokens_counts_the_same() -> None:
    """2.5 times and 0.5 times: 1.118 in the geometric mean."""
    found = judged(ZEROS, FASTER_AT_ONE, "memory")
    assert found.form == "2:4"
    assert found.reason.startswith("1.12 times as fast")
    assert not found.dense_copy
    strict = judged(ZEROS, FASTER_AT_ONE, "strict")
    assert (strict.form, strict.dense_copy) == ("2:4", True)
    assert "dense is faster at 1024 tokens" in strict.reason
    assert judged(ZEROS, FASTER_AT_ONE, "memory", tokens=(1024,)).form == "dense"


def test_what_was_not_measured() -> None:
    found = judged(ZEROS, None)
    nothing = "nothing measured on NVIDIA H200; secateur tune does"
    assert found == Verdict("2:4", f"packed for its bytes, no speed-up claimed: {nothing}")
    assert judged(ZEROS, None, "strict") == Verdict("dense", f"no gain known: {nothing}")
    for policy in ("memory", "strict"):
        kept = judged(layer("2:4"), None, policy)
        assert kept == Verdict("2:4", f"stays compressed; {nothing}")


def test_a_cpu_claims_nothing() -> None:
    assert judged(ZEROS, None, device=CPU) == Verdict("dense", f"2:4, stays dense; {NO_CLAIM}")
    assert judged(ZEROS, None, device=CPU, force=True) == Verdict("2:4", f"forced; {NO_CLAIM}")
    assert judged(layer("2:4"), None, device=CPU).reason == f"stays compressed; {NO_CLAIM}"
    factors = judged(layer("low-rank"), None, "strict", device=CPU)
    assert factors.reason == ("stays compressed; nothing measured on this CPU, no speed-up claimed")


def test_force_packs_where_dense_is_faster() -> None:
    found = judged(ZEROS, SLOWER, force=True)
    assert found.form == "2:4"
    assert found.reason.startswith("forced; 0.57 times as fast as dense")
    assert judged(layer("2:4"), SLOWER, "strict", force=True).form == "2:4"


def test_compressed_layers_stay_under_memory_only() -> None:
    kept = judged(layer("2:4"), SLOWER, "memory")
    assert kept.form == "2:4"
    assert kept.reason.startswith("stays compressed; 0.57 times as fast as dense")
    assert judged(layer("2:4"), SLOWER, "strict").form == "dense"
    both = judged(layer("2:4"), FASTER_AT_ONE, "strict")
    assert (both.form, both.dense_copy) == ("2:4", True)
    fast = judged(layer("2:4"), FASTER, "strict")
    assert (fast.form, fast.dense_copy) == ("2:4", False)


@pytest.mark.parametrize("form", ["low-rank", "2:4+low-rank"])
def test_factors_have_no_dense_copy(form: Form) -> None:
    kernel = {"low-rank": "two_gemms", "2:4+low-rank": "unpack"}[form]
    fast = table(entry(form, 1, 10, **{kernel: 4}), entry(form, 1024, 4, **{kernel: 8}))
    assert judged(layer(form), fast, "strict").form == form
    assert not judged(layer(form), fast, "strict").dense_copy
    slow = table(entry(form, 1, 10, **{kernel: 9}), entry(form, 1024, 4, **{kernel: 8}))
    assert judged(layer(form), slow, "strict").form == "dense"
    assert judged(layer(form), slow, "memory").form == form


def test_layers_together_borrow_the_times_of_the_one_that_gains_least() -> None:
    """[6144, 4096] was measured; [8192 + 20480, 4096] is like nothing, its members partly."""
    times = table(entry("2:4", 1, 9, n=8192, unpack=3), entry("2:4", 1, 10, n=20480, unpack=8))
    pair = (layer(rows=8192, could_be_24=True), layer(rows=20480, could_be_24=True))
    found = judged(pair, table(*times.entries[:1]), tokens=(1,))
    assert found.reason.startswith("packed for its bytes")
    reason = judged(pair, times, tokens=(1,)).reason
    # The sum is within a factor of two of 20480.
    assert reason.startswith("1.25 times as fast as dense (unpack 8.0 us, dense 10.0 us")
    far = (layer(rows=8192, could_be_24=True),) * 6
    assert judged(far, times, tokens=(1,)).reason.startswith("3.00 times as fast")


def test_gains_count_backends_that_are_there() -> None:
    problem = Problem("sparse24_linear", 1, 4096, 4096, BF16, H200)
    # No compiled library on this device.
    fast_but_absent = table(entry("2:4", 1, 10, cuda=1, unpack=5))
    assert gain_over_dense(problem, fast_but_absent)[0] == 2.0
    alone = gain_over_dense(problem, table(entry("2:4", 1, 0, unpack=5)))
    assert alone == (None, "not timed beside dense, measured at 1 tokens")
    assert gain_over_dense(problem, None)[0] is None
