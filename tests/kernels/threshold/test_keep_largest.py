"""Exact thresholds: against sorting, and the kernel against plain torch, bit for bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.backends import Backend
from secateur_kernels.threshold import triton_kernel
from secateur_kernels.threshold.op import keep_largest_per_row
from secateur_kernels.threshold.reference import NAN_KEY, ordered_keys

# On a CPU the kernel runs in Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: tuple[Backend, ...] = ("reference", "triton")
LEVELS = (math.nan, -math.inf, -2.0, -1e-42, -0.0, 0.0, 1e-42, 1.0, 3e38, math.inf)


def scores(shape: tuple[int, int], ties: float, seed: int) -> Tensor:
    """Normal numbers, and a fraction from few levels: ties, zeros of both signs, denormals, NaN."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor(LEVELS)[torch.randint(0, len(LEVELS), shape, generator=generator)]
    tied = torch.rand(shape, generator=generator) < ties
    return torch.where(tied, levels, torch.randn(shape, generator=generator)).to(DEVICE)


def by_sorting(score: Tensor, keep: int) -> Tensor:
    """The contract in words: numbers before NaN, higher before lower, then lower columns."""
    mask = torch.zeros(score.shape, dtype=torch.bool)
    for row, values in enumerate(score.tolist()):
        numbers = [column for column, value in enumerate(values) if not math.isnan(value)]
        order = sorted(numbers, key=lambda column: -values[column])
        order += [column for column, value in enumerate(values) if math.isnan(value)]
        mask[row, order[:keep]] = True
    return mask.to(score.device)


# Loops with a bound that is known at run time only, in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 5),
    columns=st.integers(0, 70),
    fraction=st.floats(0, 1),
    ties=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_reference_keeps_what_sorting_keeps(
    rows: int, columns: int, fraction: float, ties: float, seed: int
) -> None:
    score, keep = scores((rows, columns), ties, seed), round(fraction * columns)
    mask = keep_largest_per_row(score, keep, backend="reference")
    assert torch.equal(mask, by_sorting(score, keep))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 3),
    columns=st.integers(0, 40) | st.integers(1020, 1030),
    fraction=st.floats(0, 1),
    ties=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_kernel_equals_reference(
    rows: int, columns: int, fraction: float, ties: float, seed: int
) -> None:
    score, keep = scores((rows, columns), ties, seed), round(fraction * columns)
    expected = keep_largest_per_row(score, keep, backend="reference")
    assert torch.equal(keep_largest_per_row(score, keep, backend="triton"), expected)


@pytest.mark.parametrize("order", ["falling", "rising", "ties"])
@pytest.mark.parametrize("columns", [513, 768])
def test_long_rows_in_chunks(columns: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "_MAX_RESIDENT", 0)
    monkeypatch.setattr(triton_kernel, "_MAX_RESIDENT_UNALIGNED", 0)
    monkeypatch.setattr(triton_kernel, "_CHUNK", 256)
    score, keeps = scores((1, columns), 1.0, seed=3), (columns // 2, columns - 1)
    if order != "ties":
        # The extremes, which decide where these thresholds are looked for, at either end.
        score, keeps = torch.linspace(-1.0, 1.0, columns, device=DEVICE)[None], (1, columns - 1)
        score = score.flip(1) if order == "falling" else score
    for keep in keeps:
        expected = keep_largest_per_row(score, keep, backend="reference")
        assert torch.equal(keep_largest_per_row(score, keep, backend="triton"), expected)


def test_sizes_of_real_layers_have_tiles() -> None:
    for columns in (4096, 11008, 14336, 28672, 32768, 32769, 65536):
        for aligned in (True, False):
            block, piece, resident, num_warps = triton_kernel._tile(columns, aligned)
            assert not resident or block >= columns
            assert block % piece == 0
            assert num_warps in (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_keep_the_lower_column(backend: Backend) -> None:
    score = torch.tensor([[0.0, -0.0, 0.0, -0.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]], device=DEVICE)
    mask = keep_largest_per_row(score, 3, backend=backend)
    assert mask.tolist() == [[True, True, False, False, True], [True, True, True, False, False]]


def test_keys_are_in_the_order_of_scores() -> None:
    ordered = torch.tensor([-math.inf, -3e38, -1.0, -1e-42, 0.0, 1e-42, 1.0, 3e38, math.inf])
    keys = ordered_keys(ordered)
    assert bool((keys.diff() > 0).all())
    assert int(keys[0]) > NAN_KEY
    assert ordered_keys(torch.tensor([-0.0, math.nan])).tolist() == [0, NAN_KEY]


def test_any_strides() -> None:
    base = scores((8, 40), 0.5, seed=1)
    for score in (base.T[:3], base[:2, 3:20], base[::3], base[:1].expand(2, 40)):
        expected = by_sorting(score, 5)
        for backend in BACKENDS:
            assert torch.equal(keep_largest_per_row(score, 5, backend=backend), expected)


def test_bad_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    score = torch.randn(3, 8)
    with pytest.raises(SecateurError, match=r"expected scores torch.float32 \[N, K\], got .*\[3\]"):
        keep_largest_per_row(score[:, 0], 1)
    with pytest.raises(SecateurError, match=r"got torch\.float64"):
        keep_largest_per_row(score.double(), 1)
    for keep in (-1, 9):
        with pytest.raises(SecateurError, match=f"0 <= keep <= K = 8, got keep = {keep}"):
            keep_largest_per_row(score, keep)
    with pytest.raises(SecateurError, match="expected backend auto, reference, triton"):
        keep_largest_per_row(score, 1, backend="cuda")
    monkeypatch.setattr("secateur_kernels.backends.triton_interprets", lambda: False)
    with pytest.raises(SecateurError, match="on an NVIDIA GPU for backend triton"):
        keep_largest_per_row(score, 1, backend="triton")


def test_the_op_keeps_torch_s_rules() -> None:
    score = scores((3, 20), 0.0, seed=0)
    torch.library.opcheck(torch.ops.secateur.keep_largest_per_row.default, (score, 5, "auto"))
