"""Factors as a value."""

from typing import Any

import pytest
import torch
from kernels.linears import randn

from secateur_kernels import LowRank, SecateurError


def factors(rows: int, columns: int, rank: int) -> LowRank:
    up = randn(rows, rank, dtype=torch.float64, seed=1)
    return LowRank.from_factors(up, randn(rank, columns, dtype=torch.float64, seed=2))


@pytest.mark.parametrize("rank", [1, 15, 16, 17])
def test_ranks_are_padded_to_16_and_change_nothing(rank: int) -> None:
    up = randn(20, rank, dtype=torch.float64, seed=1)
    down = randn(rank, 24, dtype=torch.float64, seed=2)
    weight = LowRank.from_factors(up, down)
    assert weight.rank % 16 == 0
    assert torch.allclose(weight.to_dense(), up @ down, rtol=1e-13, atol=1e-13)
    assert weight.shape == (20, 24)
    assert weight.num_bytes == 8 * (weight.rank * 24 + 20 * weight.rank)


def test_stacked_weights_keep_their_own_factors() -> None:
    parts = [factors(20, 24, 5), factors(12, 24, 30)]
    stacked = LowRank.stack(parts)
    assert stacked.group_rows == (20, 12)
    assert torch.equal(stacked.to_dense(), torch.cat([part.to_dense() for part in parts]))
    nested = LowRank.stack([stacked, parts[0]])
    assert nested.group_rows == (20, 12, 20)
    assert torch.equal(nested.to_dense()[32:], parts[0].to_dense())


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_tensor_parallel_slices(ways: int) -> None:
    weight = factors(64, 128, 16)
    dense = weight.to_dense()
    rows = [weight.slice_rows(i * 64 // ways, (i + 1) * 64 // ways) for i in range(ways)]
    assert torch.allclose(torch.cat([part.to_dense() for part in rows]), dense, atol=1e-12)
    columns = [weight.slice_columns(i * 128 // ways, (i + 1) * 128 // ways) for i in range(ways)]
    assert torch.allclose(torch.cat([part.to_dense() for part in columns], 1), dense, atol=1e-12)
    x = randn(3, 128, dtype=torch.float64)
    # Row parallel: partial results may be added before `up`, r numbers a token.
    hidden = sum(
        x[:, i * 128 // ways : (i + 1) * 128 // ways] @ part.down.T
        for i, part in enumerate(columns)
    )
    assert torch.allclose(hidden @ weight.up.T, x @ dense.T, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank.from_factors(torch.ones(4, 3), torch.ones(2, 5)), "expected factors up"),
        (
            lambda: LowRank(torch.ones(3, 5), torch.ones(4, 2), (4,)),
            r"expected down \[1 \* r, K\] and up \[N, r\], got \[3, 5\] and \[4, 2\]",
        ),
        (lambda: LowRank(torch.ones(0, 5), torch.ones(4, 0), (4,)), "rank of at least 1, got 0"),
        (
            lambda: LowRank(torch.ones(2, 5), torch.ones(4, 2), (3,)),
            r"add up to 4, got \[3\]",
        ),
        (lambda: LowRank(torch.ones(2, 5).half(), torch.ones(4, 2), (4,)), "one floating dtype"),
        (
            lambda: LowRank(torch.ones(2, 5).long(), torch.ones(4, 2).long(), (4,)),
            "one floating dtype",
        ),
        (lambda: LowRank(torch.ones(5, 2).T, torch.ones(4, 2), (4,)), "to be contiguous"),
        (lambda: LowRank.stack([]), "at least one weight"),
        (lambda: LowRank.stack([factors(4, 5, 2), factors(4, 6, 2)]), "weights of one K and dtype"),
        (lambda: factors(4, 5, 2).padded(8), "expected a rank of at least 16, got 8"),
        (lambda: factors(4, 5, 2).slice_rows(2, 5), "expected rows within 0 to 4, got 2 to 5"),
        (
            lambda: LowRank.stack([factors(4, 5, 2)] * 2).slice_rows(0, 4),
            "expected one group to slice, got 2",
        ),
        (lambda: LowRank.from_dense(torch.ones(4, 5), 0), r"got \[4, 5\] and 0"),
        (lambda: LowRank.from_dense(torch.ones(4, 5), 5), r"got \[4, 5\] and 5"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        make()
