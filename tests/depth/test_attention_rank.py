import math
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from secateur.depth.attention_rank import (
    LAZY_THRESHOLD,
    SHARE,
    AttentionRank,
    approximate_rank,
    column_mass,
    even_attention,
    lazy_blocks,
)
from secateur.errors import SecateurError

SHARES = st.sampled_from([0.25, 0.5, 0.9, 0.99])


def some_attention(shape: list[int], seed: int, sharpness: float = 3.0) -> Tensor:
    """Causal softmax [*shape, T, T] of random scores, T being the last of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    scores = sharpness * torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    later = torch.ones(shape[-1], shape[-1]).triu(1).bool()
    return scores.masked_fill(later, -math.inf).softmax(-1)


def fewest(parts: NDArray[np.float64], share: float) -> tuple[int, float]:
    """How many of the largest reach the share, and how near a sum is to it, of the whole."""
    whole, total, count = float(parts.sum()), 0.0, 0
    nearest = math.inf
    for part in sorted(parts.tolist(), reverse=True):
        nearest = min(nearest, abs(total / whole - share))
        if total >= share * whole:
            break
        total, count = total + part, count + 1
    return count, min(nearest, abs(total / whole - share))


def expected_rank(matrix: Tensor, share: float) -> tuple[int, float]:
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return fewest(values**2, share)


def expected_mass(matrix: Tensor, share: float) -> tuple[int, float]:
    return fewest(matrix.double().numpy().sum(axis=0), share)


@settings(deadline=None, max_examples=60)
@given(
    leading=st.lists(st.integers(1, 3), max_size=2),
    length=st.integers(1, 33),
    sharpness=st.sampled_from([0.0, 1.0, 10.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    share=SHARES,
    seed=st.integers(0, 1000),
)
def test_equals_a_singular_value_decomposition(
    leading: list[int],
    length: int,
    sharpness: float,
    dtype: torch.dtype,
    share: float,
    seed: int,
) -> None:
    attention = some_attention([*leading, length], seed, sharpness).to(dtype)
    ranks, masses = approximate_rank(attention, share), column_mass(attention, share)
    assert ranks.shape == masses.shape == torch.Size(leading)
    assert ranks.dtype == masses.dtype == torch.int64
    matrices = attention.reshape(-1, length, length)
    for found, by_hand in ((ranks, expected_rank), (masses, expected_mass)):
        for value, matrix in zip(found.flatten().tolist(), matrices, strict=True):
            count, nearest = by_hand(matrix, share)
            # Where a sum meets the share but for rounding, both answers are right.
            assert value == count or nearest < 1e-12
            assert 1 <= value <= length


@settings(deadline=None)
@given(length=st.integers(1, 40), column=st.integers(0, 39), share=SHARES)
def test_a_single_column_has_rank_one_and_mass_one(length: int, column: int, share: float) -> None:
    assume(column < length)
    attention = torch.zeros(length, length)
    attention[:, column] = 1
    assert int(approximate_rank(attention, share)) == 1
    assert int(column_mass(attention, share)) == 1


@settings(deadline=None)
@given(length=st.integers(1, 25), seed=st.integers(0, 1000))
def test_any_rank_one_matrix_has_rank_one(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = 0.1 + torch.rand(2, length, generator=generator, dtype=torch.float64)
    assert int(approximate_rank(torch.outer(left, right / right.sum()), share=0.999999)) == 1


@settings(deadline=None)
@given(length=st.integers(1, 200), seed=st.integers(0, 1000))
def test_equal_values_need_nine_of_ten(length: int, seed: int) -> None:
    nine_tenths = -(-9 * length // 10)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    for attention in (torch.eye(length), torch.eye(length)[order]):
        assert int(approximate_rank(attention)) == nine_tenths
        assert int(column_mass(attention)) == nine_tenths


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("length", [10, 30, 70, 200])
def test_exact_ties_fall_as_on_paper(scale: float, length: int) -> None:
    # Sums of these values are rounded: some come out a little below nine tenths.
    matrix = scale * torch.eye(length, dtype=torch.float64)
    assert int(approximate_rank(matrix)) == int(column_mass(matrix)) == 9 * length // 10


@settings(deadline=None, max_examples=30)
@given(heads=st.integers(1, 5), length=st.integers(1, 12), seed=st.integers(0, 1000))
def test_heads_do_not_mix(heads: int, length: int, seed: int) -> None:
    attention = some_attention([heads, length], seed)
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(seed))
    for measure in (approximate_rank, column_mass):
        assert measure(attention[order]).tolist() == measure(attention)[order].tolist()


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 12), seed=st.integers(0, 1000))
def test_a_larger_share_needs_no_fewer(length: int, seed: int) -> None:
    attention = some_attention([length], seed)
    for measure in (approximate_rank, column_mass):
        counts = [int(measure(attention, share)) for share in (0.1, 0.5, 0.9, 1.0)]
        assert counts == sorted(counts)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 57, 128])
def test_even_attention_by_another_way(length: int) -> None:
    # Column j is given 1/(t+1) by every token t from j on: a tail of the harmonic series.
    tails = [sum(1 / (t + 1) for t in range(j, length)) for j in range(length)]
    wanted = 0.9 * length * (1 - 1e-12)
    even = even_attention(length)
    assert int(column_mass(even)) == 1 + sum(total < wanted for total in accumulate(tails))
    assert even.sum(-1).tolist() == pytest.approx([1.0] * length, abs=1e-14)
    assert not bool(even.triu(1).any())
    assert int(approximate_rank(even)) == expected_rank(even, 0.9)[0]


def test_the_share_is_the_papers() -> None:
    assert SHARE == 0.9
    # Squared singular values 0.64 and 0.36, then 0.9409 and 0.0591 of the sum.
    below, above = torch.diag(torch.tensor([0.8, 0.6])), torch.diag(torch.tensor([0.97, 0.243]))
    assert [int(approximate_rank(matrix)) for matrix in (below, above)] == [2, 1]
    # Column masses are not squared.
    assert [int(column_mass(matrix)) for matrix in (below, above)] == [2, 2]


def test_means_are_over_samples() -> None:
    attention = some_attention([5, 3, 9], seed=4)
    rank = AttentionRank()
    rank.add(attention[:2])
    rank.add(attention[2])
    rank.add(attention[3:])
    wanted = [np.mean([expected_rank(a, 0.9)[0] for a in attention[:, h]]) for h in range(3)]
    assert rank.mean_ranks() == pytest.approx(wanted, abs=1e-12)
    wanted = [np.mean([expected_mass(a, 0.9)[0] for a in attention[:, h]]) for h in range(3)]
    assert rank.mean_masses() == pytest.approx(wanted, abs=1e-12)


def test_samples_may_differ_in_length_and_shares_are_used() -> None:
    rank = AttentionRank(share=0.5)
    rank.add(torch.eye(4)[None])
    rank.add(torch.eye(10)[None])
    assert rank.mean_ranks() == rank.mean_masses() == (3.5,)


def test_a_block_is_lazy_where_its_strongest_head_is() -> None:
    ranks = [[1.0, 1.4], [1.0, 1.5], [1.49], [9.0, 1.0]]
    assert lazy_blocks(ranks) == (0, 2)
    assert LAZY_THRESHOLD == 1.5
    assert lazy_blocks(ranks, 1.45) == (0,)
    assert lazy_blocks(ranks, 10) == (0, 1, 2, 3)
    assert lazy_blocks([]) == ()


@pytest.mark.parametrize("measure", [approximate_rank, column_mass])
@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (torch.ones(3), r"expected attention probabilities \[\.\.\., T, T\], got \[3\]"),
        (torch.ones(2, 3, 4), r"got \[2, 3, 4\]"),
        (torch.ones(2, 0, 0), r"got \[2, 0, 0\]"),
        (torch.eye(3).long(), "floating attention probabilities, got torch.int64"),
        (torch.tensor([[1.0, math.nan], [0, 1]]), "1 of 4 are negative or not finite"),
        (torch.tensor([[1.0, math.inf], [-0.5, 1]]), "2 of 4 are negative or not finite"),
        (torch.stack([torch.eye(2), torch.zeros(2, 2)]), "got a matrix of zeros"),
    ],
)
def test_refuses_what_is_no_attention(measure: Any, attention: Tensor, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        measure(attention)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_refuses_shares_out_of_range(share: float) -> None:
    for measure in (approximate_rank, column_mass):
        with pytest.raises(SecateurError, match=f"above 0 and at most 1, got {share:g}"):
            measure(torch.eye(2), share)


def test_refuses_samples_that_do_not_fit() -> None:
    rank = AttentionRank()
    with pytest.raises(SecateurError, match="at least one sample for an attention rank, got none"):
        rank.mean_ranks()
    rank.add(torch.ones(0, 2, 3, 3))
    with pytest.raises(SecateurError, match="at least one sample"):
        rank.mean_masses()
    with pytest.raises(SecateurError, match=r"\[samples, heads, T, T\] or \[heads, T, T\], got \["):
        rank.add(torch.eye(3))
    rank.add(torch.eye(3).expand(2, 3, 3))
    with pytest.raises(SecateurError, match="expected attention of 2 heads as before, got 4"):
        rank.add(torch.eye(3).expand(4, 3, 3))


@pytest.mark.parametrize("threshold", [1.0, 0.5, math.nan, math.inf])
def test_refuses_thresholds_that_mean_nothing(threshold: float) -> None:
    with pytest.raises(SecateurError, match=f"a threshold above 1, .* got {threshold:g}"):
        lazy_blocks([[1.0]], threshold)


@pytest.mark.parametrize("ranks", [[], [1.0, math.nan]])
def test_refuses_blocks_without_ranks(ranks: list[float]) -> None:
    with pytest.raises(SecateurError, match=r"finite ranks of one head or more .* but block 1 has"):
        lazy_blocks([[2.0], ranks])


def test_refuses_even_attention_to_nothing() -> None:
    with pytest.raises(SecateurError, match="a length of at least 1, got 0"):
        even_attention(0)
