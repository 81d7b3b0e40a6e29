"""What plans may be asked for, and what is refused."""

from typing import Any

import pytest
import torch
from families import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.plan.make import Target
from secateur.plan.options import PlanOptions, check_sparse24, offered_ranks
from secateur.plan.workload import Workload, workload_call


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5),
)
def test_ranks_store_less_than_the_matrix(shape: tuple[int, int], fractions: list[float]) -> None:
    ranks = offered_ranks(shape, fractions)
    assert list(ranks) == sorted(set(ranks))
    for rank in ranks:
        assert rank % 16 == 0
        assert rank * sum(shape) < shape[0] * shape[1]


def test_ranks_by_hand() -> None:
    # Break-even 128; 0.3 of it is 38.4, and 48 is nearer than 32 to 0.34 of it, 43.5.
    assert offered_ranks((256, 256), (0.3, 0.34, 0.5)) == (32, 48, 64)
    assert offered_ranks((32, 32), (0.5,)) == ()


def test_methods_by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert PlanOptions().resolved_methods(cpu) == ("dense", "low-rank", "drop")
    assert PlanOptions().resolved_methods(gpu) == ("dense", "2:4", "low-rank", "drop")
    asked = PlanOptions(methods=("drop", "2:4"))
    assert asked.resolved_methods(cpu) == ("dense", "2:4", "drop")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ("laser",)}, "expected methods among dense, 2:4, low-rank, drop, got 'laser'"),
        ({"methods": ()}, "got none"),
        ({"rank_fractions": (0.5, 1.0)}, r"above 0 and below 1, got 0\.5, 1\.0"),
        ({"rank_fractions": ()}, "rank fractions above 0 and below 1, got none"),
        ({"rounds": 0}, "expected at least 1 round, got 0"),
        ({"trials": -1}, "expected at least 0 trials, got -1"),
        (
            {"importance": "size"},
            "expected importance one of directions, loss, output, got 'size'",
        ),
    ],
)
def test_bad_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        PlanOptions(**values)


def test_sparse24_needs_16_bits() -> None:
    check_sparse24(("dense", "2:4"), torch.bfloat16)
    check_sparse24(("dense",), torch.float32)
    with pytest.raises(SecateurError, match="bfloat16 or float16 to offer 2:4, got float32"):
        check_sparse24(("dense", "2:4"), torch.float32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"expected exactly one limit: .*got none"),
        ({"speedup": 2.0, "num_bytes": 5}, "expected exactly one"),
        ({"speedup": 1.0}, "expected a target speed-up above 1, got 1"),
        ({"milliseconds": -3.0}, r"expected one limit above 0, milliseconds or bytes, got -3\.0"),
        ({"num_bytes": 0}, "expected one limit above 0"),
    ],
)
def test_bad_targets(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        Target(**values)


def test_targets_as_limits_and_words() -> None:
    assert Target(speedup=2.0).limit(10.0).milliseconds == 5.0
    assert Target(milliseconds=4.0).limit(10.0).milliseconds == 4.0
    assert Target(num_bytes=1000).limit(10.0).num_bytes == 1000
    assert Target(speedup=1.5).words == "1.5 times as fast as dense"
    assert Target(milliseconds=4.0).words == "at most 4 ms"
    assert Target(num_bytes=12345).words == "at most 12,345 bytes of weights"


def test_workloads() -> None:
    assert (Workload(3).tokens, Workload(3).name) == (3, "decode, batch 3, context 128")
    prefill = Workload(3, 7)
    assert (prefill.tokens, prefill.name) == (21, "prefill, batch 3, length 7")
    for values in ((0,), (1, 0), (1, None, 0)):
        with pytest.raises(SecateurError, match="of at least 1, got"):
            Workload(*values)  # type: ignore[arg-type]


def test_threads_while_times_are_measured() -> None:
    before = torch.get_num_threads()
    with Workload(threads=before + 1).its_threads():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with Workload().its_threads():
        assert torch.get_num_threads() == before
    with pytest.raises(SecateurError, match="at least 1 thread, got 0"):
        Workload(threads=0)


def test_workloads_fit_the_context() -> None:
    model = tiny_model("llama", 2)
    Workload(1, 128).check(model)
    Workload(1, None, 127).check(model)
    for workload in (Workload(1, 129), Workload(1, None, 128)):
        with pytest.raises(SecateurError, match="at most 128 tokens a sequence, the model's conte"):
            workload.check(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_decode_step_is_the_same(family: str) -> None:
    model = tiny_model(family, 2)
    with torch.no_grad():
        call = workload_call(model, Workload(2, None, 9))
        first, second = call(), call()
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.shape == (2, 1, 128)
    assert torch.equal(first, second)


def test_a_cache_of_another_kind_is_refused() -> None:
    model = tiny_model("llama", 2)
    genuine = model.forward

    def with_another(*args: Any, **kwargs: Any) -> Any:
        output = genuine(*args, **kwargs)
        output.past_key_values = [1]
        return output

    model.forward = with_another
    with pytest.raises(SecateurError, match="kept by layers, got list: give a prefill length"):
        workload_call(model, Workload(1, None, 4))
