"""Packing in one pass against the layouts, and the kernel against plain torch, bit for bit."""

import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.layouts import Canonical24, Fragment24
from secateur_kernels.pack24 import triton_kernel
from secateur_kernels.pack24.config import Pack24TritonConfig
from secateur_kernels.pack24.op import Form, pack24
from secateur_kernels.pack24.pruned import Pruned24
from secateur_kernels.pack24.request import Request

# On a CPU the kernel runs in Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = (torch.bfloat16, torch.float16)
ALL: tuple[Form, ...] = ("mask", "canonical", "fragment")

# NaN times a norm, in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


def awkward(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Many ties, zeros of both signs, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -3.5, math.inf, -math.inf, math.nan])
    picked = choice[torch.randint(0, len(choice), shape, generator=generator)]
    noise = torch.randn(shape, generator=generator)
    return torch.where(noise > 0, noise, picked).to(dtype).to(DEVICE)


def at_most_two_of_four(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows, columns // 4, 4, generator=generator).argsort(2).argsort(2)
    kept = (ranks < 2) & (torch.rand(rows, columns // 4, 4, generator=generator) < 0.8)
    return kept.view(rows, columns).to(DEVICE)


def assert_same(found: Pruned24, expected: Pruned24) -> None:
    """Bit for bit, and legal."""
    for name in ("keep_mask", "canonical", "fragment"):
        assert (getattr(found, name) is None) == (getattr(expected, name) is None), name
    if found.keep_mask is not None and expected.keep_mask is not None:
        assert torch.equal(found.keep_mask, expected.keep_mask)
    if found.canonical is not None and expected.canonical is not None:
        found.canonical.validate()
        values, wanted = found.canonical.values, expected.canonical.values
        assert values.dtype == wanted.dtype
        assert torch.equal(values.view(torch.int16), wanted.view(torch.int16))
        assert torch.equal(found.canonical.indices, expected.canonical.indices)
    if found.fragment is not None and expected.fragment is not None:
        found.fragment.validate()
        assert torch.equal(found.fragment.data, expected.fragment.data)
        assert found.fragment.kind == expected.fragment.kind
        assert found.fragment.shape == expected.fragment.shape
        assert found.fragment.row_order == expected.fragment.row_order


def best_two(scores: list[float]) -> list[bool]:
    """By sorting, as the contract words it: NaN below everything, ties to the lower column."""
    numbers = sorted((i for i in range(4) if not math.isnan(scores[i])), key=lambda i: -scores[i])
    order = numbers + [i for i in range(4) if math.isnan(scores[i])]
    return [i in order[:2] for i in range(4)]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_every_pattern_of_four_scores(backend: Any) -> None:
    levels = [math.nan, -math.inf, -1.0, -0.0, 0.0, math.inf]
    groups = list(itertools.product(levels, repeat=4))
    expected = torch.tensor([best_two(list(group)) for group in groups])
    score = torch.tensor(groups, device=DEVICE).view(36, 144)
    mask = pack24(torch.zeros_like(score), score=score, backend=backend).keep_mask
    assert mask is not None
    assert torch.equal(mask.cpu().view(-1, 4), expected)
    assert int(mask.sum()) == 2 * len(groups)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_weight_there_is_by_magnitude(dtype: torch.dtype) -> None:
    bits = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0)) - (1 << 15)
    weight = bits.to(torch.int16).view(dtype).view(128, 512).to(DEVICE)
    reference = pack24(weight, want=ALL, backend="reference")
    assert_same(pack24(weight, want=ALL, backend="triton"), reference)
    groups = weight.float().abs().cpu().view(-1, 4)[::16].tolist()
    assert reference.keep_mask is not None
    kept = reference.keep_mask.cpu().view(-1, 4)[::16]
    assert torch.equal(kept, torch.tensor([best_two(group) for group in groups]))
    # Kept weights bit for bit, NaN included.
    assert reference.canonical is not None
    kept_bits = weight.view(torch.int16)[reference.keep_mask]
    assert torch.equal(reference.canonical.values.view(torch.int16).flatten(), kept_bits)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("row_order", ["natural", "gate_up"])
def test_bytes_are_those_of_the_layouts(row_order: Any, dtype: torch.dtype, backend: Any) -> None:
    weight = torch.randn(96, 276, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)
    mask = at_most_two_of_four(96, 276, seed=2)
    # What is dropped does not matter.
    poisoned = weight.masked_fill(~mask, math.nan)
    packed = pack24(poisoned, keep_mask=mask, row_order=row_order, want=ALL, backend=backend)
    canonical = Canonical24.from_dense(weight, mask)
    fragment = Fragment24.from_dense(weight, mask, row_order)
    assert_same(packed, Pruned24(canonical.keep_mask(), canonical, fragment))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 35),
    groups=st.integers(0, 20) | st.integers(63, 66),
    dtype=st.sampled_from(HALVES),
    source=st.sampled_from(["magnitude", "input_norm", "score", "keep_mask"]),
    score_dtype=st.sampled_from([*HALVES, torch.float32]),
    gate_up=st.booleans(),
    want=st.sets(st.sampled_from(get_args(Form)), min_size=1),
    seed=st.integers(0, 1000),
)
def test_kernel_equals_reference(
    rows: int,
    groups: int,
    dtype: torch.dtype,
    source: str,
    score_dtype: torch.dtype,
    gate_up: bool,
    want: set[Form],
    seed: int,
) -> None:
    rows = rows // 16 * 16 if gate_up else rows
    columns = 4 * groups
    arguments: dict[str, Any] = {
        "magnitude": {},
        "input_norm": {"input_norm": awkward((columns,), torch.float32, seed + 1).abs()},
        "score": {"score": awkward((rows, columns), score_dtype, seed + 2)},
        "keep_mask": {"keep_mask": at_most_two_of_four(rows, columns, seed + 3)},
    }[source]
    arguments |= {"want": sorted(want), "row_order": "gate_up" if gate_up else "natural"}
    weight = awkward((rows, columns), dtype, seed)
    expected = pack24(weight, **arguments, backend="reference")
    assert_same(pack24(weight, **arguments, backend="triton"), expected)
    if expected.fragment is not None and expected.canonical is not None:
        again = Fragment24.from_canonical(expected.canonical, expected.fragment.row_order)
        assert torch.equal(again.data, expected.fragment.data)


@pytest.mark.parametrize("config", [(16, 64, 4), (32, 128, 4), (64, 256, 8), (64, 64, 2)], ids=str)
def test_every_tile_gives_the_same(config: tuple[int, int, int]) -> None:
    weight = awkward((130, 332), torch.bfloat16, seed=11)
    norm = torch.rand(332, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    request = Request(weight, norm, None, None, "natural", True, True, True)
    packed = triton_kernel.launch(request, Pack24TritonConfig(*config))
    expected = pack24(weight, input_norm=norm, want=ALL, backend="reference")
    assert_same(Pruned24.of(packed, request), expected)


@pytest.mark.parametrize("with_norm", [False, True])
def test_fp32_weights_give_masks(with_norm: bool) -> None:
    weight = awkward((19, 68), torch.float32, seed=5)
    norm = torch.rand(68, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    used = norm if with_norm else None
    expected = pack24(weight, input_norm=used, backend="reference").keep_mask
    found = pack24(weight, input_norm=used, backend="triton").keep_mask
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)


def test_wanda_is_magnitude_times_norm_in_fp32() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(40, 128, generator=generator).bfloat16().to(DEVICE)
    norm = torch.rand(128, generator=generator).to(DEVICE)
    score = weight.float().abs() * norm
    assert_same(pack24(weight, input_norm=norm, want=ALL), pack24(weight, score=score, want=ALL))


def test_padding_does_not_see_an_infinite_norm() -> None:
    weight = torch.ones(3, 8, device=DEVICE).half()
    norm = torch.full((8,), math.inf, device=DEVICE)
    expected = pack24(weight, input_norm=norm, want=ALL, backend="reference")
    assert_same(pack24(weight, input_norm=norm, want=ALL, backend="triton"), expected)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda base: base.T,
    "rows of a wider matrix": lambda base: base[:, 8:72],
    "not aligned to groups": lambda base: base[:, 2:66],
    "every other row": lambda base: base[::2, :64],
    "rows repeated": lambda base: base[:1, :64].expand(24, 64),
    "a single row of odd stride": lambda base: base[:, :1].T,
    "odd start": lambda base: base.flatten()[3 : 3 + 32 * 64].view(32, 64),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str) -> None:
    cut = VIEWS[view]
    weight = cut(awkward((80, 80), torch.bfloat16, seed=7))
    score = cut(awkward((80, 80), torch.float32, seed=8))
    mask = cut(at_most_two_of_four(80, 80, seed=9))
    if bool((mask.reshape(-1, 4).sum(1) > 2).any()):
        mask = at_most_two_of_four(weight.shape[0], weight.shape[1], seed=9)
    norm = awkward((weight.shape[1] + 1,), torch.float32, seed=10)[1:].abs()
    sources: list[dict[str, Any]] = [{"input_norm": norm}, {"score": score}, {"keep_mask": mask}]
    for arguments in sources:
        expected = pack24(weight.clone(), **arguments, want=ALL, backend="reference")
        assert_same(pack24(weight, **arguments, want=ALL, backend="reference"), expected)
        assert_same(pack24(weight, **arguments, want=ALL, backend="triton"), expected)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("size", [(0, 64), (16, 0), (0, 0)], ids=str)
def test_empty_weights(size: tuple[int, int], backend: Any) -> None:
    weight = torch.empty(size, dtype=torch.float16, device=DEVICE)
    packed = pack24(weight, want=ALL, row_order="gate_up", backend=backend)
    canonical = Canonical24.from_dense(weight)
    fragment = Fragment24.from_dense(weight, row_order="gate_up")
    assert_same(packed, Pruned24(torch.ones_like(weight, dtype=torch.bool), canonical, fragment))


def test_only_what_is_wanted_is_made_and_nothing_needs_a_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 64, device=DEVICE).bfloat16())
    mask = pack24(weight)
    assert mask.canonical is None
    assert mask.fragment is None
    fragment = pack24(weight, want=("fragment",)).fragment
    assert fragment is not None
    assert not fragment.data.requires_grad


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_mask_that_keeps_three_is_refused(backend: Any) -> None:
    mask = torch.zeros(20, 64, dtype=torch.bool, device=DEVICE)
    mask[17, 8:11] = True
    weight = torch.randn(20, 64, device=DEVICE).half()
    with pytest.raises(SecateurError, match="row 17 keeps 3 of columns 8 to 11"):
        pack24(weight, keep_mask=mask, want=("fragment",), backend=backend)


def test_bad_arguments_are_refused() -> None:
    weight = torch.randn(24, 64).bfloat16()
    with pytest.raises(SecateurError, match=r"K divisible by 4, got \[24, 62\]"):
        pack24(weight[:, :62])
    with pytest.raises(SecateurError, match=r"K divisible by 4, got \[24\]"):
        pack24(weight[:, 0])
    with pytest.raises(SecateurError, match="weights of dtype bfloat16, float16, got float32"):
        pack24(weight.float(), want=("canonical",))
    with pytest.raises(SecateurError, match=r"weights of dtype .*float32, got torch.float64"):
        pack24(weight.double())
    with pytest.raises(SecateurError, match=r"input_norm torch.float32 \[64\] .* got .*\[24\]"):
        pack24(weight, input_norm=torch.ones(24))
    with pytest.raises(SecateurError, match=r"input_norm torch.float32 .* got torch.bfloat16"):
        pack24(weight, input_norm=torch.ones(64).bfloat16())
    with pytest.raises(SecateurError, match=r"expected score .*\[24, 64\] .* got torch.int64"):
        pack24(weight, score=torch.ones(24, 64, dtype=torch.int64))
    with pytest.raises(SecateurError, match=r"expected keep_mask torch.bool .* got .*\[24, 60\]"):
        pack24(weight, keep_mask=torch.ones(24, 60, dtype=torch.bool))
    with pytest.raises(SecateurError, match=r"at most one of .* got input_norm and score"):
        pack24(weight, input_norm=torch.ones(64), score=torch.ones(24, 64))
    with pytest.raises(SecateurError, match="row order natural or gate_up, got 'up_gate'"):
        pack24(weight, row_order="up_gate", want=("fragment",))  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match=r"N divisible by 16.* got N = 24"):
        pack24(weight, row_order="gate_up", want=("fragment",))
    with pytest.raises(SecateurError, match=r"expected want to name some of .* got \['dense'\]"):
        pack24(weight, want=("dense",))  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="expected want"):
        pack24(weight, want=())
    with pytest.raises(SecateurError, match="expected backend auto, reference, triton, got 'cuda'"):
        pack24(weight, backend="cuda")
    elsewhere = Request(
        weight, None, torch.ones(24, 64, device="meta"), None, "natural", True, False, False
    )
    with pytest.raises(SecateurError, match="expected score on cpu as the weight, got meta"):
        elsewhere.check()


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur_kernels.backends.triton_interprets", lambda: False)
    with pytest.raises(SecateurError, match="on an NVIDIA GPU for backend triton"):
        pack24(torch.randn(16, 64).half(), backend="triton")


@pytest.mark.parametrize("source", ["magnitude", "input_norm", "score", "keep_mask"])
def test_the_op_keeps_torch_s_rules(source: str) -> None:
    weight = torch.randn(18, 68).bfloat16().to(DEVICE)
    norm = torch.rand(68, device=DEVICE) if source == "input_norm" else None
    score = torch.rand(18, 68, device=DEVICE) if source == "score" else None
    mask = at_most_two_of_four(18, 68, seed=0) if source == "keep_mask" else None
    torch.library.opcheck(
        torch.ops.secateur.pack24.default,
        (weight, norm, score, mask, "natural", True, True, source != "score", "auto"),
    )
