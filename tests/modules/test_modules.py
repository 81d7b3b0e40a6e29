"""Modules around packed weights: conversion, state dicts, one op call."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from kernels.linears import randn, random_mask
from torch import nn
from torch._subclasses import FakeTensorMode

from secateur import SecateurError
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur_kernels.layouts import Canonical24, LowRank

MASK = random_mask(32, 64)


def linear(bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    layer = nn.Linear(64, 32, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(randn(32, 64, dtype=torch.float32, seed=3))
    return layer.to(dtype)


def make(kind: str, bias: bool = True) -> Any:
    return compressed(kind, linear(bias))


def compressed(kind: str, layer: nn.Linear) -> Any:
    if kind == "sparse":
        return Sparse24Linear.from_linear(layer, MASK)
    if kind == "low rank":
        return LowRankLinear.from_linear(layer, 16)
    return SparseLowRankLinear.from_linear(layer, MASK, 16)


def fresh(kind: str, bias: bool = True) -> Any:
    if kind == "sparse":
        return Sparse24Linear(64, 32, bias, dtype=torch.bfloat16)
    if kind == "low rank":
        return LowRankLinear(64, 32, 16, bias, dtype=torch.bfloat16)
    return SparseLowRankLinear(64, 32, 16, bias, dtype=torch.bfloat16)


KINDS = ("sparse", "low rank", "both")
X = randn(2, 3, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str, bias: bool) -> None:
    layer = make(kind, bias)
    state = layer.state_dict()
    assert "data" not in state
    if kind != "low rank":
        assert state["weight"].shape == (32, 32)
        assert state["indices"].dtype == torch.uint8
    other = fresh(kind, bias)
    other.load_state_dict(state)
    expected = layer(X)
    if kind != "low rank":
        # The canonical form rounds each part to bfloat16 before they are added.
        assert torch.allclose(other(X), expected, atol=4 * 2**-8 * expected.abs().max().item())
        other.pack()
    assert torch.equal(other(X), expected)
    packed = make(kind, bias)
    packed.load_state_dict(state)
    assert torch.equal(packed(X), expected)


def test_a_linear_layer_comes_back_bit_for_bit() -> None:
    layer = linear()
    back = Sparse24Linear.from_linear(layer, MASK).to_linear()
    assert torch.equal(back.weight, layer.weight.masked_fill(~MASK, 0.0))
    assert torch.equal(back.bias, layer.bias)


def test_the_best_factors_of_a_linear_layer() -> None:
    layer = linear(dtype=torch.float64)
    factored = LowRankLinear.from_linear(layer, 20)
    assert factored.rank == 32, "padded to 16"
    error = torch.linalg.matrix_norm(factored.to_linear().weight - layer.weight)
    tail = torch.linalg.svdvals(layer.weight)[20:].square().sum().sqrt()
    assert error.item() == pytest.approx(tail.item(), rel=1e-9)


def test_what_is_dropped_goes_to_the_factors() -> None:
    layer = linear()
    both = SparseLowRankLinear.from_linear(layer, MASK, 16).to_linear().weight.double()
    sparse = layer.weight.masked_fill(~MASK, 0.0).double()
    dropped = layer.weight.double() - sparse
    tail = torch.linalg.svdvals(dropped)[16:].square().sum().sqrt()
    error = torch.linalg.matrix_norm(both - layer.weight.double())
    assert error.item() == pytest.approx(tail.item(), rel=0.02)


def test_gate_and_up_in_one_layer() -> None:
    gate, up = linear(bias=False), linear(bias=False)
    with torch.no_grad():
        up.weight.mul_(0.5)
    parts = [Canonical24.from_dense(part.weight.detach(), MASK) for part in (gate, up)]
    fused = Sparse24Linear.from_weight(
        Canonical24.concatenate_rows(parts), activation="silu_and_mul"
    )
    single = [Sparse24Linear.from_weight(part) for part in parts]
    expected = nn.functional.silu(single[0](X).float()) * single[1](X).float()
    assert fused(X).shape == (2, 3, 32)
    assert torch.allclose(fused(X).float(), expected, rtol=0.02, atol=0.02)
    fused.unpack()
    assert torch.allclose(fused(X).float(), expected, rtol=0.02, atol=0.02)
    assert torch.equal(fused.dense_weight(), Canonical24.concatenate_rows(parts).to_dense())
    with pytest.raises(SecateurError, match="expected a layer without activation"):
        fused.to_linear()


def test_fused_factors() -> None:
    parts = [LowRank.from_dense(linear(bias=False).weight.detach(), rank) for rank in (4, 20)]
    fused = LowRankLinear.from_factors(LowRank.stack(parts))
    single = [LowRankLinear.from_factors(part) for part in parts]
    assert fused.group_rows == (32, 32)
    assert torch.equal(fused(X), torch.cat([layer(X) for layer in single], dim=-1))


@pytest.mark.parametrize("bias", [False, True])
def test_plain_products_on_a_cpu_are_those_of_the_op(bias: bool) -> None:
    layer = LowRankLinear.from_linear(nn.Linear(40, 24, bias=bias), 16)
    x = randn(3, 5, 40, dtype=torch.float32)
    values = (x, layer.down, layer.up, layer.group_rows, layer.bias, None, "none", "auto")
    assert torch.equal(layer(x), torch.ops.secateur.low_rank_linear(*values))


def test_training_reaches_the_kept_weights_only() -> None:
    layer = Sparse24Linear.from_linear(linear(), MASK)
    layer.unpack()
    before, values = layer.canonical(), layer.canonical().values.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(X).square().mean().backward()
    optimizer.step()
    after = layer.canonical()
    assert torch.equal(before.indices, after.indices)
    assert not torch.equal(values, after.values)
    assert int((layer.dense_weight() != 0).view(32, 16, 4).sum(2).max()) == 2


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_frozen(kind: str, weight: bool, bias: bool) -> None:
    layer = linear()
    layer.weight.requires_grad_(weight)
    layer.bias.requires_grad_(bias)
    made = compressed(kind, layer)
    if kind != "low rank":
        made.unpack()
    asks = {name: parameter.requires_grad for name, parameter in made.named_parameters()}
    assert asks.pop("bias") is bias
    assert set(asks.values()) == {weight}


@pytest.mark.parametrize("kind", ["sparse", "both"])
def test_a_packed_weight_remembers_whether_it_was_frozen(kind: str) -> None:
    layer = make(kind).unpack()
    layer.weight.requires_grad_(False)
    layer.pack().load_state_dict(layer.state_dict())
    assert not layer.unpack().weight.requires_grad
    layer.pack().requires_grad_(True)
    assert layer.unpack().weight.requires_grad
    layer.pack().requires_grad_(False)
    assert not layer.unpack().weight.requires_grad


def test_residual_is_added_in_the_same_call() -> None:
    residual = randn(2, 3, 32, dtype=torch.bfloat16, seed=9)
    for kind in KINDS:
        layer = make(kind)
        assert torch.allclose(layer(X, residual), layer(X) + residual, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_into_one_graph(kind: str) -> None:
    layer = make(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(X), layer(X))


def test_a_dense_copy_on_request() -> None:
    layer = Sparse24Linear.from_linear(linear(), MASK)
    packed_only = layer(X)
    assert layer.keep_dense_copy() == 32 * 64 * 2
    assert torch.allclose(layer(X), packed_only, rtol=0.02, atol=0.02)
    assert set(layer.state_dict()) == {"weight", "indices", "bias"}
    layer.drop_dense_copy()
    assert torch.equal(layer(X), packed_only)


def test_a_dense_copy_goes_with_the_weight_that_it_is_a_copy_of() -> None:
    for change in (
        lambda layer: layer.load_state_dict(make("sparse").state_dict()),
        lambda layer: layer.half(),
    ):
        layer = make("sparse")
        layer.keep_dense_copy()
        change(layer)
        assert layer.is_packed
        assert layer.dense is None


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_with_their_buffers(kind: str, packed: bool, tmp_path: Path) -> None:
    layer = make(kind)
    if kind != "low rank" and not packed:
        layer.unpack()
    expected = layer(X)
    for offloaded in (
        cpu_offload(copy.deepcopy(layer), "cpu", offload_buffers=True),
        disk_offload(copy.deepcopy(layer), str(tmp_path), "cpu", offload_buffers=True),
    ):
        assert torch.equal(offloaded(X), expected)


def test_print() -> None:
    assert "2:4 packed" in repr(make("sparse"))
    assert "rank=16" in repr(make("low rank"))
    assert "2:4 canonical" in repr(fresh("both"))


def test_errors() -> None:
    with pytest.raises(SecateurError, match="expected in_features divisible by 4, got 6"):
        Sparse24Linear(6, 8)
    with pytest.raises(SecateurError, match="expected at most 2 of 4"):
        Sparse24Linear.from_linear(linear())
    with pytest.raises(SecateurError, match="expected weights of dtype bfloat16, float16"):
        Sparse24Linear(64, 32, dtype=torch.float32).pack()
    with pytest.raises(SecateurError, match="expected a packed layer"):
        Sparse24Linear(64, 32, dtype=torch.bfloat16).keep_dense_copy()
    with pytest.raises(SecateurError, match=r"a rank of 1 to min\(N, K\), got \[32, 64\] and 33"):
        LowRankLinear.from_linear(linear(), 33)
    wrong = Canonical24.from_dense(torch.zeros(32, 60).bfloat16())
    factors = LowRank.from_dense(torch.ones(32, 64), 4)
    with pytest.raises(SecateurError, match="expected parts of one shape and dtype"):
        SparseLowRankLinear.from_parts(wrong, factors)


def test_a_corrupt_index_is_found_when_packing() -> None:
    layer = fresh("sparse")
    layer.indices[3, 2] = 0x00
    with pytest.raises(SecateurError, match="the packed weight is corrupt"):
        layer.pack()


@pytest.mark.parametrize("kind", ["sparse", "both"])
def test_packed_layers_without_their_numbers(kind: str) -> None:
    layer = make(kind)
    state, expected = layer.state_dict(), layer(X)
    layer.to("meta")
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    found = layer.state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == shapes
    layer.to_empty(device="cpu")
    layer.data.fill_(255)  # fresh memory may hold anything
    layer.load_state_dict(state)
    assert layer.is_packed
    assert torch.equal(layer(X), expected)


def test_fresh_memory_that_nothing_was_loaded_into_is_refused() -> None:
    layer = make("sparse")
    layer.data.fill_(255)
    with pytest.raises(SecateurError, match="the packed weight is corrupt"):
        layer.load_state_dict({}, strict=False)


@pytest.mark.parametrize("kind", ["sparse", "both"])
def test_a_packed_layer_is_cast_whole(kind: str) -> None:
    layer = make(kind)
    values, indices = (layer.state_dict()[name] for name in ("weight", "indices"))
    layer.to(torch.float16)
    assert layer.is_packed
    assert layer(X.half()).dtype == torch.float16
    assert torch.equal(layer.state_dict()["weight"], values.half())
    layer.float()
    assert not layer.is_packed
    assert layer.value_dtype == layer(X.float()).dtype == torch.float32
    assert torch.equal(layer.weight, values.half().float())
    assert torch.equal(layer.indices, indices)
    layer.bfloat16()
    assert layer.value_dtype == torch.bfloat16
    assert torch.equal(layer.pack().state_dict()["weight"], values)


@pytest.mark.parametrize("kind", ["sparse", "both"])
def test_what_casts_nothing_keeps_the_packed_bytes(kind: str) -> None:
    layer = make(kind)
    data = layer.data
    before = data.clone()
    layer.bfloat16().to("cpu").to(torch.bfloat16)
    assert layer.data is data
    layer.share_memory()
    assert layer.data.is_shared()
    assert torch.equal(layer.data, before)


def test_a_frozen_weight_stays_frozen_when_it_is_cast() -> None:
    layer = make("sparse").requires_grad_(False)
    assert not layer.half().unpack().weight.requires_grad


def leader_and_follower() -> nn.ModuleList:
    leader = LowRankLinear(64, 32, 16)
    return nn.ModuleList([leader, LowRankLinear(64, 32, 16, shares_down_with=leader)])


@pytest.mark.parametrize("residual", [None, torch.ones(2, 32)])
def test_a_shared_down_that_was_offloaded_is_refused(residual: torch.Tensor | None) -> None:
    leader, follower = leader_and_follower()
    leader.to("meta")
    with pytest.raises(SecateurError, match="shared down on cpu as x, got meta: layers that share"):
        follower(torch.ones(2, 64), residual)


def test_layers_that_share_down_run_without_their_numbers() -> None:
    layers = leader_and_follower()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layers[1](torch.ones(2, 64)).shape == (2, 32)
    compiled = torch.compile(layers[1], fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(2, 64)).shape == (2, 32)
    assert layers.to("meta")[1](torch.ones(2, 64, device="meta")).shape == (2, 32)
