"""Unpacking: kept weights bit for bit, zeros elsewhere, on every backend."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.layouts import Fragment24
from secateur_kernels.pack24.op import pack24
from secateur_kernels.unpack24.op import unpack24, unpack24_data

# On a CPU the kernel runs in Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = (torch.bfloat16, torch.float16)


def packed(
    rows: int, columns: int, dtype: torch.dtype, row_order: Any, seed: int
) -> tuple[Fragment24, Tensor]:
    """A weight of all bit patterns, NaN among them, and the bits that unpacking must give back."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(1 << 15), 1 << 15, (rows, columns), generator=generator)
    weight = bits.to(torch.int16).view(dtype).to(DEVICE)
    pruned = pack24(weight, want=("mask", "fragment"), row_order=row_order, backend="reference")
    assert pruned.fragment is not None
    assert pruned.keep_mask is not None
    return pruned.fragment, weight.view(torch.int16).masked_fill(~pruned.keep_mask, 0)


@pytest.mark.parametrize("backend", ["reference", "triton", "auto"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("row_order", ["natural", "gate_up"])
def test_kept_bits_come_back(row_order: Any, dtype: torch.dtype, backend: Any) -> None:
    fragment, expected = packed(96, 332, dtype, row_order, seed=0)
    dense = unpack24(fragment, backend=backend)
    assert dense.dtype == dtype
    assert dense.is_contiguous()
    assert torch.equal(dense.view(torch.int16), expected)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 35),
    groups=st.integers(0, 20) | st.integers(63, 66),
    dtype=st.sampled_from(HALVES),
    gate_up=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_kernel_equals_reference(
    rows: int, groups: int, dtype: torch.dtype, gate_up: bool, seed: int
) -> None:
    rows = rows // 16 * 16 if gate_up else rows
    fragment, expected = packed(rows, 4 * groups, dtype, "gate_up" if gate_up else "natural", seed)
    for backend in ("reference", "triton"):
        assert torch.equal(unpack24(fragment, backend=backend).view(torch.int16), expected)


def test_it_is_what_the_layout_says() -> None:
    weight = torch.randn(70, 132, generator=torch.Generator().manual_seed(1)).half()
    mask = pack24(weight).keep_mask
    fragment = Fragment24.from_dense(weight, mask)
    assert torch.equal(unpack24(fragment), fragment.to_dense())


def test_bad_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fragment = Fragment24.from_dense(torch.zeros(64, 64).half())
    fields = (64, 64, "natural", torch.float16)
    with pytest.raises(SecateurError, match=r"expected data uint8 \[1, 2, 4608\]"):
        unpack24_data(fragment.data, 64, 68, "natural", torch.float16)
    with pytest.raises(SecateurError, match="expected a Fragment24, got Canonical24"):
        unpack24(fragment.to_canonical())  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="row order natural or gate_up, got 'other'"):
        unpack24_data(fragment.data, 64, 64, "other", torch.float16)
    with pytest.raises(SecateurError, match="weights of dtype bfloat16, float16, got float32"):
        unpack24_data(fragment.data, 64, 64, "natural", torch.float32)
    with pytest.raises(SecateurError, match="expected backend auto, reference, triton, cuda"):
        unpack24_data(fragment.data, *fields, "unpack")
    with pytest.raises(SecateurError, match="on an NVIDIA GPU for backend cuda, got cpu"):
        unpack24(fragment, backend="cuda")
    monkeypatch.setattr("secateur_kernels.backends.triton_interprets", lambda: False)
    with pytest.raises(SecateurError, match="on an NVIDIA GPU for backend triton"):
        unpack24(fragment, backend="triton")


@pytest.mark.parametrize("row_order", ["natural", "gate_up"])
def test_the_op_keeps_torch_s_rules(row_order: str) -> None:
    fragment, _ = packed(32, 68, torch.bfloat16, row_order, seed=1)
    torch.library.opcheck(
        torch.ops.secateur.unpack24.default,
        (fragment.data, 32, 68, row_order, torch.bfloat16, "auto"),
    )
