"""Canonical 2:4 against plain loops."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.layouts import Canonical24, Fragment24

DTYPES = (torch.bfloat16, torch.float16)
sizes = st.tuples(st.integers(0, 9), st.integers(0, 9).map(lambda groups: 4 * groups))


def sparse_weight(rows: int, columns: int, dtype: torch.dtype, seed: int, most: int = 2) -> Tensor:
    """Random weights of which each group of four keeps 0 to `most`, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows, columns // 4, 4, generator=generator).argsort(2).argsort(2)
    kept = torch.randint(0, most + 1, (rows, columns // 4, 1), generator=generator)
    weight = torch.randn(rows, columns // 4, 4, generator=generator)
    return weight.masked_fill(ranks >= kept, 0.0).view(rows, columns).to(dtype)


@settings(deadline=None, max_examples=60)
@given(size=sizes, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000))
def test_packing_keeps_every_bit(size: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    weight = sparse_weight(*size, dtype, seed)
    packed = Canonical24.from_dense(weight)
    assert packed.shape == size
    assert torch.equal(packed.to_dense().view(torch.int16), weight.view(torch.int16))
    assert packed.num_bytes == weight.nbytes // 2 + size[0] * -(-size[1] // 8)


@pytest.mark.parametrize("zeros", list(product([False, True], repeat=4)))
def test_every_pattern_of_four(zeros: tuple[bool, ...]) -> None:
    group = [0.0 if zero else float(column + 1) for column, zero in enumerate(zeros)]
    weight = torch.tensor([group], dtype=torch.bfloat16)
    if zeros.count(False) > 2:
        with pytest.raises(SecateurError, match=r"row 0 keeps [34] of columns 0 to 3"):
            Canonical24.from_dense(weight)
        return
    packed = Canonical24.from_dense(weight)
    kept = [column for column, zero in enumerate(zeros) if not zero]
    fillers = [column for column, zero in enumerate(zeros) if zero]
    expected = sorted(kept + fillers[: 2 - len(kept)])
    nibble = int(packed.nibbles()[0, 0])
    assert [nibble & 3, nibble >> 2] == expected, "the lowest free columns fill up"
    assert packed.values.tolist() == [[group[column] for column in expected]]
    # The second group of the byte is padding: columns 0 and 1.
    assert int(packed.indices[0, 0]) >> 4 == 0b0100


def test_what_a_mask_drops_is_gone_whatever_it_was() -> None:
    weight = torch.tensor([[float("nan"), 2.0, float("inf"), -0.0]], dtype=torch.bfloat16)
    mask = torch.tensor([[False, True, False, False]])
    packed = Canonical24.from_dense(weight, mask)
    assert packed.to_dense().tolist() == [[0.0, 2.0, 0.0, 0.0]]
    assert not packed.to_dense().signbit().any()


def test_a_kept_negative_zero_keeps_its_sign_and_an_unkept_one_does_not() -> None:
    weight = torch.tensor([[-0.0, 1.0, -0.0, 0.0]], dtype=torch.float16)
    assert not Canonical24.from_dense(weight).to_dense().signbit().any()
    kept = Canonical24.from_dense(weight, torch.tensor([[True, True, False, False]]))
    assert kept.to_dense().signbit().tolist() == [[True, False, False, False]]


def test_a_mask_may_keep_zeros() -> None:
    weight = torch.zeros(3, 8, dtype=torch.bfloat16)
    mask = torch.tensor([0, 0, 1, 1] * 2, dtype=torch.bool).expand(3, 8)
    assert torch.equal(Canonical24.from_dense(weight, mask).keep_mask(), mask)


def test_strides_do_not_matter() -> None:
    weight = sparse_weight(8, 16, torch.bfloat16, 0)
    strided = torch.empty(16, 8, dtype=torch.bfloat16).T.copy_(weight)
    packed = Canonical24.from_dense(strided, (weight != 0).T.contiguous().T)
    assert torch.equal(packed.to_dense(), weight)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_rows_and_columns_cut_for_tensor_parallelism(parts: int) -> None:
    weight = sparse_weight(24, 192, torch.bfloat16, 3)
    packed = Canonical24.from_dense(weight)
    rows, columns = 24 // parts, 192 // parts
    shards = [packed.slice_rows(i * rows, (i + 1) * rows) for i in range(parts)]
    assert torch.equal(Canonical24.concatenate_rows(shards).to_dense(), weight)
    for i in range(parts):
        cut = packed.slice_columns(i * columns, (i + 1) * columns)
        assert torch.equal(cut.to_dense(), weight[:, i * columns : (i + 1) * columns])


def test_the_last_columns_need_not_end_at_eight() -> None:
    weight = sparse_weight(5, 20, torch.float16, 1)
    cut = Canonical24.from_dense(weight).slice_columns(8, 20)
    assert torch.equal(cut.to_dense(), weight[:, 8:])


def good() -> Canonical24:
    return Canonical24.from_dense(sparse_weight(4, 16, torch.bfloat16, 0))


def test_bad_weights_are_refused() -> None:
    with pytest.raises(SecateurError, match="expected weights of dtype bfloat16, float16, got fl"):
        Canonical24.from_dense(torch.zeros(4, 8))
    with pytest.raises(SecateurError, match=r"K divisible by 4, got \[4, 6\]"):
        Canonical24.from_dense(torch.zeros(4, 6, dtype=torch.bfloat16))
    with pytest.raises(SecateurError, match=r"K divisible by 4, got \[8\]"):
        Canonical24.from_dense(torch.zeros(8, dtype=torch.bfloat16))
    with pytest.raises(SecateurError, match=r"expected keep_mask bool \[4, 8\]"):
        Canonical24.from_dense(torch.zeros(4, 8, dtype=torch.bfloat16), torch.ones(4, 8))


def test_corrupt_bytes_are_refused() -> None:
    packed = good()
    for nibble in (0b0000, 0b0001, 0b0101, 0b1111):
        indices = packed.indices.clone()
        indices[2, 1] = (indices[2, 1] & 15) | (nibble << 4)
        with pytest.raises(SecateurError, match=r"corrupt: group \[2, 3\] has the index pair"):
            Canonical24(packed.values, indices)
    with pytest.raises(SecateurError, match=r"expected indices uint8 \[4, 2\]"):
        Canonical24(packed.values, packed.indices[:, :1])
    with pytest.raises(SecateurError, match="expected indices uint8"):
        Canonical24(packed.values, packed.indices.int())
    with pytest.raises(SecateurError, match="to be contiguous"):
        Canonical24(packed.values.T.contiguous().T, packed.indices)
    with pytest.raises(SecateurError, match=r"expected values \[N, K / 2\]"):
        Canonical24(packed.values[:, :7], packed.indices)
    with pytest.raises(SecateurError, match="on one device"):
        Canonical24(packed.values, packed.indices.to("meta"))


def test_bad_cuts_are_refused() -> None:
    packed = good()
    with pytest.raises(SecateurError, match="expected rows within 0 to 4, got 2 to 5"):
        packed.slice_rows(2, 5)
    with pytest.raises(SecateurError, match="bounds at multiples of 8"):
        packed.slice_columns(4, 16)
    with pytest.raises(SecateurError, match="expected columns within 0 to 16, got 16 to 8"):
        packed.slice_columns(16, 8)
    with pytest.raises(SecateurError, match="at least one weight"):
        Canonical24.concatenate_rows([])
    with pytest.raises(SecateurError, match="one K and dtype"):
        Canonical24.concatenate_rows([packed, packed.slice_columns(0, 8)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_bit_pattern_comes_back(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(128, 512)
    mask = torch.zeros(128, 512, dtype=torch.bool)
    mask[:, 1::2] = True
    for keep in (mask, ~mask):
        packed = Canonical24.from_dense(bits.view(dtype), keep)
        expected = bits.masked_fill(~keep, 0)
        assert torch.equal(packed.to_dense().view(torch.int16), expected)
        fragment = Fragment24.from_canonical(packed)
        assert torch.equal(fragment.to_dense().view(torch.int16), expected)
