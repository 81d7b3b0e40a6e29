"""What the C interface of the low-rank kernels refuses; configs against its formulas."""

import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.low_rank_case import Call, Case, LowRankNeeds

from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.low_rank_linear.cuda_boxes import (
    box_variants,
    gated_config,
    side_by_side,
    takes_boxes,
)
from secateur_kernels.low_rank_linear.cuda_choice import candidate_configs, default_config
from secateur_kernels.low_rank_linear.cuda_config import (
    LowRankCudaConfig,
    LowRankShape,
    down_shared_bytes,
    hidden_bytes,
    shared_bytes_of,
    supports,
    up_shared_bytes,
    workspace_floats,
)
from secateur_kernels.low_rank_linear.cuda_kernel import fitted, takes_groups

H200 = (9, 0)
# N, K, rank: a quarter of the smaller side, and less.
SHAPES = [(6144, 4096, 1024), (4096, 4096, 1024), (28672, 4096, 1024), (4096, 14336, 1024)]
SHAPES += [(8192, 8192, 2048), (57344, 8192, 2048), (8192, 28672, 2048), (4096, 4096, 128)]
SHAPES += [(1000, 384, 96), (64, 64, 16), (1, 1, 16), (152064, 3584, 64), (100, 70000, 512)]


BOX_UP = {"up_division.boxes": 1, "up_division.warps": 8}


def sound_call(sparse: bool = False) -> Call:
    """Three tokens, two groups; gate and up where there is a 2:4 weight."""
    x, y = torch.zeros(3, 128, dtype=torch.float16), torch.zeros(3, 96, dtype=torch.float16)
    factors = LowRank(
        torch.zeros(64, 128, dtype=torch.float16),
        torch.zeros(96, 32, dtype=torch.float16),
        (48, 48),
    )
    packed = Fragment24.from_dense(torch.zeros(96, 128, dtype=torch.float16)) if sparse else None
    call = Call(x, factors, packed, y, Case(dtype=torch.float16, up=(2, 2, 2, 3)))
    workspace = torch.zeros(1 << 12)
    call.kept = (*call.kept, workspace)  # type: ignore[assignment]
    call.arguments.workspace = workspace.data_ptr() + -workspace.data_ptr() % 16
    call.arguments.workspace_bytes = 4 * (1 << 12) - 16
    return call


def answer(call: Call, emulator: Any) -> str:
    code = emulator.functions.secateur_low_rank_check(ctypes.byref(call.arguments))
    return str(emulator.text(code))


def test_sound_arguments_are_accepted(emulator: Any) -> None:
    assert answer(sound_call(), emulator) == "no error"
    gated = sound_call()
    gated.arguments.silu_and_mul = gated.arguments.up_division.boxes = 1
    gated.arguments.up_division.warps = 8
    assert answer(gated, emulator) == "no error"
    assert answer(sound_call(sparse=True), emulator) == "no error"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": 0}, "got a null pointer"),
        ({"down": 0}, "got a null pointer"),
        ({"up": 0}, "got a null pointer"),
        ({"y": None}, "got a null pointer"),
        ({"rows": 0}, "at least one row"),
        ({"columns": 0}, "at least one row"),
        ({"columns": 2**30 + 1}, "to 2**30"),
        ({"tokens": 0}, "expected 1 to 64 tokens"),
        ({"tokens": 65}, "expected 1 to 64 tokens"),
        ({"value_type": 2}, "expected value type"),
        ({"groups": 0}, "expected 1 to 8 groups"),
        ({"groups": 9}, "expected 1 to 8 groups"),
        ({"groups": 1}, "whose rows add up"),
        ({"rows": 97}, "whose rows add up"),
        ({"group_rows": None}, "expected 1 to 8 groups"),
        ({"rank": 0}, "divisible by 16"),
        ({"rank": 24}, "divisible by 16"),
        ({"rank": 2**30}, "to 2**30"),
        ({"workspace_bytes": 100}, "the workspace is smaller"),
        ({"workspace": None}, "the workspace is smaller"),
        ({"x_stride": -1}, "strides of x and residual"),
        ({"rows": 95, "silu_and_mul": 1}, "expected row order gate_up for silu_and_mul"),
        ({"down_division.warps": 0}, "expected 1 to 8 warps"),
        ({"up_division.warps": 9}, "expected 1 to 8 warps"),
        ({"down_division.row_tiles": 3}, "1 or 2 row tiles"),
        ({"up_division.row_tiles": 0}, "1 or 2 row tiles"),
        ({"tokens": 17}, "2 for over 16 tokens"),
        ({"up_division.row_tiles": 1, "silu_and_mul": 1}, "gate_up and silu_and_mul"),
        ({"down_division.stages": 0}, "1 to 16 stages"),
        ({"up_division.stages": 17}, "1 to 16 stages"),
        ({"down_division.blocks": 0}, "K in 1 to 64 ranges"),
        ({"down_division.blocks": 65}, "K in 1 to 64 ranges"),
        ({"up_division.blocks": 5}, "1 to row blocks thread blocks"),
        ({"up_division.blocks": 0}, "1 to row blocks thread blocks"),
        ({"down_division.boxes": 1}, "8 warps of 1 to 4 row tiles for boxes"),
        ({"down_division.ahead": 1}, "of low rank stages, and 0 without boxes"),
        ({**BOX_UP, "up_division.ahead": 1025}, "expected 0 to 1024 steps"),
        ({**BOX_UP, "up_division.ahead": -1}, "expected 0 to 1024 steps"),
        ({"up_division.boxes": 1, "up_division.warps": 8, "up_division.stages": 1}, "2 to 16"),
        ({"tokens": 17, "up_division.boxes": 1, "up_division.warps": 8}, "for boxes"),
        ({**BOX_UP, "gate_up": 1}, "no gate_up alone"),
        ({**BOX_UP, "silu_and_mul": 1, "up_division.row_tiles": 3}, "for boxes, there 2 or 4"),
        (
            {"x_stride": 100, "down_division.boxes": 1, "down_division.warps": 8},
            "do not overlap, for boxes",
        ),
        ({**BOX_UP, "up_division.boxes": 3}, "clusters of 1, 2, 4 or 8"),
        ({**BOX_UP, "up_division.boxes": 2}, "clusters of 1, 2, 4 or 8"),  # of 3 thread blocks
        ({**BOX_UP, "up_division.boxes": 4, "up_division.blocks": 4}, "eight tokens for each"),
        ({**BOX_UP, "up_division.blocks": 5}, "1 to row blocks thread blocks"),
        ({"up_division.blocks": 2**40}, "1 to row blocks thread blocks"),
        ({"rank": 2**27}, "more shared memory"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], text: str, emulator: Any) -> None:
    call = sound_call()
    for name, value in changes.items():
        owner, _, field = name.rpartition(".")
        setattr(getattr(call.arguments, owner) if owner else call.arguments, field, value)
    assert text in answer(call, emulator)


@pytest.mark.parametrize("name", ["x", "down", "up", "y", "workspace"])
def test_misaligned_pointers_are_refused(name: str, emulator: Any) -> None:
    call = sound_call()
    setattr(call.arguments, name, getattr(call.arguments, name) + 1)
    assert "a pointer is not aligned" in answer(call, emulator)


@pytest.mark.parametrize(
    ("groups", "order", "text"),
    [
        ((40, 56), "natural", "multiples of 16 rows"),
        ((48, 32, 16), "gate_up", "two equal ones"),
        ((32, 64), "gate_up", "two equal ones"),
        ((16, 32, 48), "natural", "no error"),
        ((48, 48), "gate_up", "no error"),
        ((96,), "gate_up", "no error"),
    ],
)
def test_groups_beside_a_sparse_weight(
    groups: tuple[int, ...], order: str, text: str, emulator: Any
) -> None:
    call = sound_call(sparse=True)
    rows = (ctypes.c_int64 * len(groups))(*groups)
    call.arguments.group_rows, call.arguments.groups = ctypes.addressof(rows), len(groups)
    call.arguments.gate_up = order == "gate_up"
    found = answer(call, emulator)
    assert text in found
    assert takes_groups(groups, order) == (found == "no error")
    assert takes_groups(groups, None)


def needs_of(
    config: LowRankCudaConfig,
    shape: LowRankShape,
    group_rows: tuple[int, ...],
    emulator: Any,
    silu: bool = False,
) -> LowRankNeeds:
    x = torch.zeros(1, 1, dtype=torch.bfloat16)
    tiny = LowRank(x.expand(16, 1).contiguous(), x.expand(16, 16).contiguous(), (16,))
    call = Call(x, tiny, None, x, Case())
    rows = (ctypes.c_int64 * len(group_rows))(*group_rows)
    a = call.arguments
    a.group_rows, a.groups = ctypes.addressof(rows), len(group_rows)
    a.tokens, a.rows, a.columns, a.rank = shape.m, sum(group_rows), shape.k, shape.rank
    a.sparse = 64 if shape.sparse else 0
    a.silu_and_mul = silu
    # As aligned as boxes want it.
    a.x_stride = shape.k
    for name in ("warps", "row_tiles", "stages", "boxes"):
        setattr(a.down_division, name, getattr(config, f"down_{name}"))
        setattr(a.up_division, name, getattr(config, f"up_{name}"))
    a.down_division.blocks, a.up_division.blocks = config.splits, config.up_blocks
    return call.needs(emulator)


def check(config: LowRankCudaConfig, shape: LowRankShape, limit: int, emulator: Any) -> None:
    needs = needs_of(config, shape, (shape.n,), emulator)
    assert needs.workspace_bytes == 4 * workspace_floats(config, shape.m, shape.rank)
    assert needs.down_shared_bytes == down_shared_bytes(config, shape.m) <= limit
    assert needs.up_shared_bytes == up_shared_bytes(config, shape) <= limit


def check_gated(
    candidate: LowRankCudaConfig, shape: LowRankShape, limit: int, emulator: Any
) -> None:
    """Gate and up rows in boxes, of one group or of two."""
    half = -(-shape.n // 2)
    for group_rows in ((2 * half,), (half, half)):
        pair = replace(shape, n=2 * half, groups=len(group_rows))
        found = gated_config(candidate, pair)
        second = hidden_bytes(pair, candidate.up_boxes) * (len(group_rows) - 1)
        if found is None:
            assert up_shared_bytes(candidate, pair) + second > limit * 2 // 3
            continue
        config = fitted(found, group_rows, True)
        needs = needs_of(config, pair, group_rows, emulator, silu=True)
        assert needs.up_shared_bytes == up_shared_bytes(config, pair) + second <= limit


def test_two_groups_of_a_large_rank_get_no_boxes() -> None:
    shape = LowRankShape(16, 4096, 4096, 2048, groups=2)
    alone, shared = (LowRankCudaConfig(8, 2, 4, 4, 8, 2, 2, 128, 1, n) for n in (1, 4))
    assert gated_config(alone, shape) is None
    assert gated_config(shared, shape) == shared
    odd = replace(shared, up_row_tiles=3, up_stages=3)
    assert gated_config(odd, shape) == replace(odd, up_row_tiles=4, up_stages=2)


@pytest.mark.parametrize("sparse", [False, True], ids=["factors", "beside 2:4"])
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_defaults_and_candidates_are_accepted(
    size: tuple[int, int, int], sparse: bool, emulator: Any
) -> None:
    for capability, num_sms in ((H200, 132), ((8, 0), 108), ((8, 9), 72)):
        limit = shared_bytes_of(capability)
        for m in (1, 8, 9, 16, 17, 32, 33, 64):
            n, k, rank = size
            shape = LowRankShape(m, n, -(-k // 4) * 4, rank, sparse=sparse)
            if not supports(shape, capability):
                continue
            config = default_config(shape, num_sms, capability)
            candidates = candidate_configs(shape, num_sms, capability)
            assert candidates[0] == config
            assert len(candidates) == len(set(candidates)) <= 13
            boxes = capability == H200 and m <= 16 and not sparse and k % 8 == 0
            assert (config.down_boxes > 0, config.up_boxes > 0) == (boxes, boxes)
            for candidate in candidates:
                check(candidate, shape, limit, emulator)
                if candidate.up_boxes:
                    check_gated(candidate, shape, limit, emulator)
                    continue
                # Gate and up together: two row tiles in the room of one.
                twice = fitted(candidate, (n - n % 2,), True)
                assert up_shared_bytes(twice, shape) <= limit


@pytest.mark.parametrize(("m", "rank", "groups"), [(1, 1280, 2), (2, 1280, 1), (4, 640, 1)])
def test_sums_of_gate_and_up_find_room_beside_a_full_ring(m: int, rank: int, groups: int) -> None:
    shape = LowRankShape(m, 4096, 4096, rank, groups)
    for capability in ((8, 6), (8, 9), (12, 0)):
        limit = shared_bytes_of(capability)
        for config in candidate_configs(shape, 84, capability):
            assert up_shared_bytes(fitted(config, (4096 // groups,) * groups, True), shape) <= limit


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_variants_ask_for_weights_ahead(size: tuple[int, int, int], emulator: Any) -> None:
    n, k, rank = size
    shape = LowRankShape(8, n, -(-k // 4) * 4, rank)
    for config in candidate_configs(shape, 132, H200):
        found = box_variants(config, shape, 132)
        assert config not in found
        assert len(found) == len(set(found)) <= 8
        assert not found or config.down_boxes or config.up_boxes
        for variant in found:
            check(variant, shape, shared_bytes_of(H200), emulator)
            moments = {"down_ahead": config.down_ahead, "up_ahead": config.up_ahead}
            assert replace(variant, **moments) == config


def test_as_much_is_asked_for_ahead_as_there_is() -> None:
    """64 and 160 KB a multiprocessor: of down 32 rows, 16 KB a stage, of up 32 rows."""
    shape = LowRankShape(1, 57344, 8192, 2048)
    config = LowRankCudaConfig(8, 2, 4, 2, 8, 2, 4, 128, 1, 1)
    found = box_variants(config, shape, 132)
    assert {variant.down_ahead for variant in found} == {0, 4, 10}
    assert {variant.up_ahead for variant in found} == {0, 4, 10}
    assert "; 4 and 10 stages ahead" in str(replace(config, down_ahead=4, up_ahead=10))
    assert "ahead" not in str(config)
    small = replace(shape, n=4096, k=2048, rank=512)
    assert box_variants(config, small, 132) == []


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_smaller_rings_make_room_for_both_kernels(
    size: tuple[int, int, int], m: int, emulator: Any
) -> None:
    n, k, rank = size
    shape, limit = LowRankShape(m, n, -(-k // 8) * 8, rank), shared_bytes_of(H200)
    if not takes_boxes(shape, H200):
        return
    found = side_by_side(shape, 132, limit)
    for config in found:
        check(config, shape, limit, emulator)
        assert down_shared_bytes(config, m) + up_shared_bytes(config, shape) < limit
    assert set(found[:2]) <= set(candidate_configs(shape, 132, H200))


def test_t_of_sixteen_tokens_leaves_room_for_small_rings_only() -> None:
    shape, limit = LowRankShape(16, 8192, 8192, 2048), shared_bytes_of(H200)
    full = default_config(shape, 132, H200)
    assert down_shared_bytes(full, 16) + up_shared_bytes(full, shape) > limit
    best = side_by_side(shape, 132, limit)[0]
    assert best.down_ahead > 0
    assert best.up_ahead > 0
    assert min(best.down_stages, best.up_stages) >= 2


def test_defaults_of_an_h200() -> None:
    shape = LowRankShape(1, 4096, 4096, 1024)
    config = default_config(shape, 132, H200)
    assert config == LowRankCudaConfig(8, 2, 4, 4, 8, 2, 4, 128, 1, 1)
    # Both kernels' thread blocks side by side.
    room = down_shared_bytes(config, 1) + up_shared_bytes(config, shape)
    assert room <= shared_bytes_of(H200)
    assert "K in 4" in str(config)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_needs_are_those_of_the_library(data: st.DataObject, emulator: Any) -> None:
    m = data.draw(st.integers(1, 64))
    least = 2 if m > 16 else 1
    shape = LowRankShape(
        m,
        data.draw(st.integers(1, 40000)),
        4 * data.draw(st.integers(1, 8000)),
        16 * data.draw(st.integers(1, 128)),
        sparse=data.draw(st.booleans()),
    )
    sizes = st.tuples(st.integers(1, 8), st.integers(least, 2), st.integers(1, 16))
    config = LowRankCudaConfig(
        *data.draw(sizes), data.draw(st.integers(1, 64)), *data.draw(sizes), 10**6
    )
    check(fitted(config, (shape.n,), False), shape, 2**40, emulator)


@pytest.mark.parametrize(("up_boxes", "of_each"), [(0, 1), (1, 1), (4, 4)])
def test_no_thread_block_of_the_second_kernel_is_idle(up_boxes: int, of_each: int) -> None:
    config = LowRankCudaConfig(8, 2, 4, 4, 8, 2, 4, 10**6, 1, up_boxes)
    # Tiles of 2 x 16 rows, which do not go across groups; of 16 gate and 16 up rows.
    assert fitted(config, (65, 32), False).up_blocks == (3 + 1) * of_each
    assert fitted(config, (96, 96), True).up_blocks == 6 * of_each
    assert fitted(replace(config, up_blocks=2), (65, 32), False).up_blocks == 2


def test_what_is_supported() -> None:
    for m, rank in ((64, 512), (32, 1024), (16, 2048)):
        assert supports(LowRankShape(m, 4096, 4096, rank), H200)
        assert not supports(LowRankShape(m, 4096, 4096, 2 * rank), H200)
    assert supports(LowRankShape(16, 4096, 4096, 1024), (8, 0))
    assert not supports(LowRankShape(0, 64, 64, 16), H200)
    assert not supports(LowRankShape(65, 64, 64, 16), H200)
    assert not supports(LowRankShape(1, 64, 64, 24), H200)
    assert not supports(LowRankShape(1, 64, 64, 16, groups=9), H200)
    assert not supports(LowRankShape(1, 64, 64, 16), (7, 5))
