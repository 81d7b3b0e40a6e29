"""Compressed layers under `torch.autocast` do what `nn.Linear` does."""

import copy
from typing import Any

import pytest
import torch
from kernels.linears import randn, random_mask
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur_kernels.layouts import Canonical24, LowRank

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MASK = random_mask(32, 64)
KINDS = ("sparse", "low rank", "groups", "both")
CASES = [(kind, packed) for kind in KINDS for packed in (False, True)]


def layer_and_dense(kind: str, bias: bool, packed: bool) -> tuple[Any, nn.Linear]:
    """A layer in fp32 (in bf16 where it is packed), and the dense one that it stands for."""
    linear = nn.Linear(64, 32, bias).to(BF16)
    with torch.no_grad():
        linear.weight.copy_(randn(32, 64, dtype=FP32, seed=3))
    layer = compressed(kind, linear)
    dense = copy.deepcopy(layer.to_linear()).float()
    return (layer if packed else canonical(layer).float()), dense


def compressed(kind: str, linear: nn.Linear) -> Any:
    if kind == "sparse":
        return Sparse24Linear.from_linear(linear, MASK)
    if kind == "low rank":
        return LowRankLinear.from_linear(linear, 16)
    if kind == "both":
        return SparseLowRankLinear.from_linear(linear, MASK, 16)
    parts = [LowRank.from_dense(part, 8) for part in linear.weight.detach().split([24, 8])]
    return LowRankLinear.from_factors(LowRank.stack(parts), linear.bias)


def canonical(layer: Any) -> Any:
    return layer if isinstance(layer, LowRankLinear) else layer.unpack()


def close(left: Tensor, right: Tensor) -> bool:
    # Sums of bf16 products, a few roundings of which are in other places.
    return torch.allclose(
        left.float(), right.float(), rtol=0, atol=2**-6 * float(right.detach().abs().max())
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "packed"), CASES)
def test_as_a_linear_layer(kind: str, packed: bool, bias: bool) -> None:
    layer, dense = layer_and_dense(kind, bias, packed)
    x = randn(2, 3, 64, dtype=FP32, seed=1).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", BF16):
        y, expected = layer(x), dense(twin)
    assert y.dtype == expected.dtype == BF16
    assert close(y, expected)
    for result in (y, expected):
        result.square().sum().backward()
    assert x.grad is not None
    assert twin.grad is not None
    assert x.grad.dtype == FP32
    assert close(x.grad, twin.grad)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype, name
    if kind == "sparse" and not packed:
        assert dense.weight.grad is not None
        assert close(layer.weight.grad, dense.weight.grad[MASK].view(32, 32))


@pytest.mark.parametrize(("kind", "packed"), CASES)
def test_a_residual_is_cast_as_well(kind: str, packed: bool) -> None:
    layer, dense = layer_and_dense(kind, True, packed)
    x, residual = randn(2, 64, dtype=FP32), randn(2, 32, dtype=FP32, seed=1)
    with torch.autocast("cpu", BF16):
        y, expected = layer(x, residual), dense(x) + residual
    assert y.dtype == BF16
    assert close(y, expected)


def test_layers_that_share_down() -> None:
    first = LowRank.from_dense(randn(32, 64, dtype=FP32), 8)
    second = LowRank(first.down, randn(32, 16, dtype=FP32), (32,))
    leader = LowRankLinear.from_factors(first)
    follower = LowRankLinear.from_factors(second, shares_down_with=leader)
    x = randn(2, 64, dtype=FP32)
    with torch.autocast("cpu", BF16):
        y = follower(x, torch.zeros(2, 32))
        expected = follower.to_linear()(x)
        y.sum().backward()
    assert close(y, expected)
    assert leader.down.grad is not None
    assert leader.down.grad.dtype == FP32


def test_gate_and_up() -> None:
    weight = Canonical24.from_dense(randn(32, 64, dtype=BF16).masked_fill(~MASK, 0.0))
    layer = Sparse24Linear.from_weight(weight, activation="silu_and_mul")
    x = randn(2, 64, dtype=FP32)
    with torch.autocast("cpu", BF16):
        y = layer(x)
    assert torch.equal(y, layer(x.to(BF16)))


@pytest.mark.parametrize("kind", ["sparse", "both"])
def test_a_packed_weight_is_multiplied_in_its_own_dtype(kind: str) -> None:
    layer, _ = layer_and_dense(kind, True, packed=True)
    x = randn(2, 64, dtype=FP32)
    with torch.autocast("cpu", FP16):
        y = layer(x)
    assert torch.equal(y, layer(x.to(BF16)).to(FP16))


def test_doubles_are_left_alone() -> None:
    layer, _ = layer_and_dense("sparse", True, packed=False)
    layer.double()
    x = randn(2, 64, dtype=torch.float64)
    with torch.autocast("cpu", BF16):
        y = layer(x)
    assert torch.equal(y, layer(x))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sparse", "low rank", "both"])
def test_on_a_gpu_as_well(kind: str) -> None:
    """By tensors without numbers, which need no GPU."""
    with FakeTensorMode():
        layer: Any = {
            "sparse": lambda: Sparse24Linear(64, 32, device="cuda"),
            "low rank": lambda: LowRankLinear(64, 32, 16, device="cuda"),
            "both": lambda: SparseLowRankLinear(64, 32, 16, device="cuda"),
        }[kind]()
        x = torch.empty(3, 64, device="cuda")
        # Not `torch.autocast`, which switches itself off where there is no GPU.
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", BF16)
        try:
            assert layer(x).dtype == BF16
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", FP16)


@pytest.mark.parametrize(("kind", "packed"), CASES)
def test_compiles_into_one_graph(kind: str, packed: bool) -> None:
    layer, _ = layer_and_dense(kind, True, packed)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = randn(2, 64, dtype=FP32)
    with torch.autocast("cpu", BF16):
        compiled, y = run(x), layer(x)
    assert compiled.dtype == BF16
    assert torch.equal(compiled, y)
