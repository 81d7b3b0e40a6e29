"""Fragment order, decoded lane by lane as the instruction set describes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.layouts import BF16, Canonical24, Fragment24


def sparse_weight(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows, columns // 4, 4, generator=generator).argsort(2).argsort(2)
    weight = torch.randn(rows, columns // 4, 4, generator=generator)
    return weight.masked_fill(ranks >= 2, 0.0).view(rows, columns).to(dtype)


def emulated(packed: Fragment24) -> Tensor:
    """The padded dense weight as the hardware reads it: PTX, mma.sp.m16n8k32 with 16-bit values.

    Written from the instruction's description, register by register, and sharing nothing with the
    packing: A fragment of lane 4q + t, register r, item e: row q + 8 * (r % 2), kept column
    2t + e + 8 * (r // 2). Metadata for selector s comes from lanes 4q + 2s and 4q + 2s + 1, the
    second for the upper 16 columns; the low 16 bits are for row q, the high for row q + 8; two
    bits a kept value, lowest first.
    """
    rows, columns = packed.padded_shape
    dense = torch.zeros(rows, columns, dtype=packed.kind.value_dtype)
    raw = packed.data.numpy().tobytes()
    for panel in range(rows // 64):
        for step in range(columns // 64):
            unit = (panel * (columns // 64) + step) * 4608
            for tile in range(4):
                start = unit + tile * 1152
                sub = raw[start : start + 1152]
                words = torch.frombuffer(bytearray(sub[1024:]), dtype=torch.int32).tolist()
                for fragment in range(2):
                    piece = bytearray(sub[512 * fragment : 512 * (fragment + 1)])
                    values = torch.frombuffer(piece, dtype=packed.kind.value_dtype)
                    for lane in range(32):
                        q, t = lane // 4, lane % 4
                        for register in range(4):
                            for item in range(2):
                                row = q + 8 * (register % 2)
                                kept = 2 * t + item + 8 * (register // 2)
                                word = words[4 * q + 2 * fragment + kept // 8] & 0xFFFFFFFF
                                half = (word >> 16) if row >= 8 else (word & 0xFFFF)
                                column = (half >> (2 * (kept % 8))) & 3
                                dense[
                                    64 * panel + 16 * tile + row,
                                    64 * step + 32 * fragment + 4 * (kept // 2) + column,
                                ] = values[8 * lane + 2 * register + item]
    return dense


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (16, 32), (80, 200), (130, 68)], ids=str)
def test_lanes_hold_what_the_instruction_wants(size: tuple[int, int], dtype: torch.dtype) -> None:
    weight = sparse_weight(*size, dtype, 1)
    dense = emulated(Fragment24.from_dense(weight))
    assert torch.equal(dense[: size[0], : size[1]], weight)
    padding = dense.clone()
    padding[: size[0], : size[1]] = 0
    assert not padding.any()


def test_the_product_equals_the_dense_product() -> None:
    weight = sparse_weight(72, 136, torch.bfloat16, 2)
    packed = Fragment24.from_dense(weight)
    x = torch.randn(5, 136, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, packed.padded_shape[1] - 136))
    product = padded @ emulated(packed).double().T
    assert torch.equal(product[:, :72], x @ weight.double().T)
    assert not product[:, 72:].any()


def test_one_hot_x_recovers_every_column() -> None:
    weight = sparse_weight(64, 64, torch.float16, 3)
    assert torch.equal(
        (torch.eye(64) @ emulated(Fragment24.from_dense(weight)).float().T).T, weight.float()
    )


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 150),
    groups=st.integers(0, 60),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_packing_keeps_every_bit(rows: int, groups: int, dtype: torch.dtype, seed: int) -> None:
    weight = sparse_weight(rows, 4 * groups, dtype, seed)
    packed = Fragment24.from_dense(weight)
    assert torch.equal(packed.to_dense(), weight)
    canonical = Canonical24.from_dense(weight)
    again = packed.to_canonical()
    assert torch.equal(again.values, canonical.values)
    assert torch.equal(again.indices, canonical.indices)


def test_size_is_nine_sixteenths() -> None:
    packed = Fragment24.from_dense(sparse_weight(128, 256, torch.bfloat16, 0))
    assert packed.num_bytes == 128 * 256 * 2 * 9 // 16


def test_gate_and_up_rows_meet_in_one_sub_tile() -> None:
    gate, up = sparse_weight(24, 64, torch.bfloat16, 4), sparse_weight(24, 64, torch.bfloat16, 5)
    weight = torch.cat([gate, up])
    packed = Fragment24.from_dense(weight, row_order="gate_up")
    assert torch.equal(packed.to_dense(), weight)
    dense = emulated(packed)
    for tile in range(3):
        rows = dense[16 * tile : 16 * tile + 16]
        assert torch.equal(rows[:8], gate[8 * tile : 8 * tile + 8])
        assert torch.equal(rows[8:], up[8 * tile : 8 * tile + 8])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_slicing_then_packing_multiplies_like_packing(parts: int) -> None:
    weight = sparse_weight(96, 192, torch.bfloat16, 6)
    canonical = Canonical24.from_dense(weight)
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = x @ Fragment24.from_canonical(canonical).to_dense().double().T
    rows, columns = 96 // parts, 192 // parts
    by_rows, by_columns = [], torch.zeros_like(whole)
    for i in range(parts):
        shard = Fragment24.from_canonical(canonical.slice_rows(i * rows, (i + 1) * rows))
        by_rows.append(x @ shard.to_dense().double().T)
        cut = canonical.slice_columns(i * columns, (i + 1) * columns)
        part = Fragment24.from_canonical(cut).to_dense().double()
        by_columns += x[:, i * columns : (i + 1) * columns] @ part.T
    assert torch.equal(torch.cat(by_rows, dim=1), whole)
    # Another order of 192 additions in float64.
    torch.testing.assert_close(by_columns, whole, rtol=0, atol=192 * 2**-52 * 64)


def good() -> Fragment24:
    return Fragment24.from_dense(sparse_weight(64, 128, torch.bfloat16, 0))


def test_bad_values_are_refused() -> None:
    packed = good()
    with pytest.raises(SecateurError, match=r"expected data uint8 \[2, 2, 4608\]"):
        Fragment24(packed.data, (65, 128), BF16)
    with pytest.raises(SecateurError, match="expected data uint8"):
        Fragment24(packed.data.view(torch.int16), (64, 128), BF16)
    with pytest.raises(SecateurError, match="expected layout version 1, got 2"):
        Fragment24(packed.data, (64, 128), BF16, version=2)
    for shape in ((64, 126), (-1, 128), (64, -4)):
        with pytest.raises(SecateurError, match=r"a shape \(N, K\) with K divisible by 4, got"):
            Fragment24(packed.data, shape, BF16)
    with pytest.raises(SecateurError, match="to be contiguous"):
        Fragment24(
            packed.data.transpose(0, 1)
            .contiguous()
            .transpose(0, 1)
            .expand(1, 2, 4608)
            .transpose(1, 2)
            .contiguous()
            .transpose(1, 2),
            (64, 128),
            BF16,
        )
    with pytest.raises(SecateurError, match="N divisible by 16"):
        Fragment24.from_dense(sparse_weight(40, 64, torch.bfloat16, 0), row_order="gate_up")


def test_corrupt_metadata_is_refused() -> None:
    data = good().data.clone()
    data[0, 1, 1024] = 0xFF
    with pytest.raises(SecateurError, match="corrupt: group"):
        Fragment24(data, (64, 128), BF16)


def test_values_on_meta_have_shapes_only() -> None:
    packed = Fragment24.from_dense(torch.zeros(48, 40, dtype=torch.bfloat16)).to("meta")
    assert packed.data.is_meta
    plain = packed.to_canonical()
    assert (plain.values.shape, plain.indices.shape) == ((48, 20), (48, 5))
    assert plain.to("meta").keep_mask().shape == (48, 40)
    assert Fragment24.from_canonical(plain).data.shape == packed.data.shape
