"""Shards of linear layers: together they give what the whole layer gives."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integrations.compact_models import compressed, dense_sites, pruned, random_mask
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.swap import compressed_modules
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.runtime.shard import AnyLinear, shard_linear
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.testing.tolerance import unit_of

BF16 = torch.bfloat16
RANK = 16
KINDS = ["dense", "2:4", "low-rank", "2:4+low-rank"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def layer_of(
    kind: str,
    rows: int,
    columns: int,
    bias: bool = True,
    groups: tuple[int, ...] | None = None,
    activation: str = "none",
) -> AnyLinear:
    generator = torch.Generator().manual_seed(3)
    sparse = Canonical24.from_dense(
        random(rows, columns, seed=1), random_mask((rows, columns), generator)
    )
    groups = groups or (rows,)
    factors = LowRank(
        random(len(groups) * RANK, columns, seed=4), random(rows, RANK, seed=5), groups
    )
    vector = random(rows, seed=2) if bias else None
    if kind == "2:4":
        return Sparse24Linear.from_weight(sparse, vector, activation=activation)
    if kind == "low-rank":
        return LowRankLinear.from_factors(factors, vector, activation=activation)
    if kind == "2:4+low-rank":
        return SparseLowRankLinear.from_parts(sparse, factors, vector, activation=activation)
    linear = nn.Linear(columns, rows, bias, dtype=BF16)
    with torch.no_grad():
        linear.weight.copy_(random(rows, columns, seed=1))
        if vector is not None:
            linear.bias.copy_(vector)
    return linear


def weight_of(layer: AnyLinear) -> Tensor:
    """[N, K] in float64, exactly: written without the layer's own product."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().double()
    weight = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    if isinstance(layer, Sparse24Linear | SparseLowRankLinear):
        weight += layer.dense_weight().double()
    if isinstance(layer, LowRankLinear | SparseLowRankLinear):
        down = layer.factors().down.double().view(len(layer.group_rows), layer.rank, -1)
        ups = layer.up.detach().double().split(list(layer.group_rows))
        weight += torch.cat([u @ d for u, d in zip(ups, down, strict=True)])
    return weight


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_cut(kind: str, size: int) -> None:
    whole = layer_of(kind, 72, 24)
    shards = [shard_linear(whole, "rows", rank, size) for rank in range(size)]
    assert all(type(shard) is type(whole) for shard in shards)
    assert {shard.out_features for shard in shards} == {72 // size}
    assert torch.equal(torch.cat([weight_of(shard) for shard in shards]), weight_of(whole))
    x = random(5, 24, seed=6)
    found = torch.cat([shard(x) for shard in shards], dim=-1)
    expected = whole(x)
    if kind in ("2:4", "2:4+low-rank"):
        # The reference sums a row in an order of its own whatever other rows there are.
        bound = 2 * unit_of(BF16) * expected.abs()
        assert bool(((found - expected).abs() <= bound).all())
    else:
        torch.testing.assert_close(found, expected, rtol=2 * unit_of(BF16), atol=2**-6)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_cut_and_results_added(kind: str, size: int) -> None:
    whole = layer_of(kind, 10, 96)
    shards = [shard_linear(whole, "columns", rank, size) for rank in range(size)]
    assert [shard.in_features for shard in shards] == [96 // size] * size
    assert torch.equal(torch.cat([weight_of(s) for s in shards], dim=1), weight_of(whole))
    assert [shard.bias is not None for shard in shards] == [True] + [False] * (size - 1)
    x = random(3, 96, seed=6)
    pieces = x.split(96 // size, dim=-1)
    results = [s(piece).double() for s, piece in zip(shards, pieces, strict=True)]
    assert whole.bias is not None
    exact = x.double() @ weight_of(whole).T + whole.bias.detach().double()
    # Every shard's result is rounded once (its factors' intermediate once more), then added.
    inner = random(RANK, 96, seed=4).double().abs() @ x.double().abs().T
    through = inner.T @ random(10, RANK, seed=5).double().abs().T if "low" in kind else 0.0
    scale = sum((r.abs() for r in results), torch.zeros(1)) + through
    assert bool(((sum(results, torch.zeros(1)) - exact).abs() <= 2 * unit_of(BF16) * scale).all())


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    devices=st.sampled_from([1, 2, 4]),
)
def test_fused_layers_are_cut_part_by_part(kind: str, sizes: list[int], devices: int) -> None:
    parts = tuple(devices * size for size in sizes)
    groups = parts if "low" in kind else None
    whole = layer_of(kind, sum(parts), 8, groups=groups)
    pieces = weight_of(whole).split(list(parts))
    for rank in range(devices):
        shard = shard_linear(whole, "rows", rank, devices, parts)
        expected = torch.cat([piece.chunk(devices)[rank] for piece in pieces])
        assert torch.equal(weight_of(shard), expected)
        assert whole.bias is not None
        assert shard.bias is not None
        biases = [b.chunk(devices)[rank] for b in whole.bias.split(list(parts))]
        assert torch.equal(shard.bias, torch.cat(biases))
        if groups:
            default = shard_linear(whole, "rows", rank, devices)
            assert torch.equal(weight_of(default), expected)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_gate_and_up_are_cut_alike(kind: str) -> None:
    groups = (32, 32) if "low" in kind else None
    whole = layer_of(kind, 64, 16, groups=groups, activation="silu_and_mul")
    x = random(4, 16, seed=7)
    found = torch.cat([shard_linear(whole, "rows", rank, 2)(x) for rank in range(2)], dim=-1)
    torch.testing.assert_close(found, whole(x), rtol=4 * unit_of(BF16), atol=2**-5)
    with pytest.raises(SecateurError, match="expected a layer without activation to cut its col"):
        shard_linear(whole, "columns", 0, 2)


@pytest.mark.parametrize("kind", ["sparse24", "low_rank", "sparse24_low_rank"])
def test_layers_of_a_model(kind: str) -> None:
    """An MLP over two and four devices: gate and up cut along rows, down along columns."""
    model = compressed("llama", kind)
    layers = compressed_modules(model)
    gate, up, down = (layers[f"model.layers.1.mlp.{name}_proj"] for name in ("gate", "up", "down"))
    x = random(6, 32, seed=8)
    expected = down(nn.functional.silu(gate(x)) * up(x)).double()
    for size in (2, 4):
        total = torch.zeros_like(expected)
        for rank in range(size):
            cut = [shard_linear(layer, "rows", rank, size) for layer in (gate, up)]
            hidden = nn.functional.silu(cut[0](x)) * cut[1](x)
            total += shard_linear(down, "columns", rank, size)(hidden).double()
        distance = torch.linalg.vector_norm(total - expected)
        assert distance <= 4 * unit_of(BF16) * torch.linalg.vector_norm(expected)


def test_a_shard_has_memory_of_its_own() -> None:
    model = pruned("llama")
    linear = dense_sites(model)[0].module
    assert isinstance(linear, nn.Linear)
    for dim in ("rows", "columns"):
        shard = shard_linear(linear, dim, 0, 1)  # type: ignore[arg-type]
        assert isinstance(shard, nn.Linear)
        assert shard.weight.data_ptr() != linear.weight.data_ptr()


def test_parts_need_not_be_groups() -> None:
    whole = layer_of("low-rank", 8, 8, groups=(2, 6))
    shard = shard_linear(whole, "rows", 0, 2, (8,))
    assert isinstance(shard, LowRankLinear)
    assert shard.group_rows == (2, 2)
    assert torch.equal(weight_of(shard), weight_of(whole)[:4])


def whole_24() -> AnyLinear:
    return layer_of("2:4", 12, 24)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shard_linear(nn.ReLU(), "rows", 0, 2), "expected a linear layer, .* got ReLU"),
        (lambda: shard_linear(whole_24(), "rows", 2, 2), "expected a rank of 0 to 1 of 2 devices"),
        (lambda: shard_linear(whole_24(), "rows", 0, 0), "expected a rank of 0 to -1 of 0 devices"),
        (lambda: shard_linear(whole_24(), "rows", 0, 5), "rows that 5 devices can share, got 12"),
        (
            lambda: shard_linear(whole_24(), "rows", 0, 2, (4, 4)),
            r"expected parts that add up to 12 rows, got \[4, 4\]",
        ),
        (
            lambda: shard_linear(whole_24(), "columns", 0, 2),
            "expected columns that 2 devices can share in steps of 8, got 24",
        ),
        (
            lambda: shard_linear(layer_of("low-rank", 4, 8), "columns", 0, 3),
            "expected columns that 3 devices can share, got 8",
        ),
        (
            lambda: shard_linear(whole_24(), "across", 0, 2),  # type: ignore[arg-type]
            "expected dim rows or columns, got 'across'",
        ),
    ],
)
def test_what_cannot_be_cut(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        call()
