"""Layers of one input multiplied together, whatever the order in which they are called."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.fuse import fuse_side_by_side
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.gated_mlp import GatedMlp
from secateur.modules.side_by_side import OneOfSeveral, SideBySide
from secateur.modules.stack import stack, unstack, why_not_stacked
from secateur.modules.weight24 import Weight24Module
from secateur_kernels.testing.tolerance import unit_of

BF16 = torch.bfloat16
ROWS = (24, 8, 40)
COLUMNS = 12
KINDS = ["dense", "2:4", "low-rank", "2:4+low-rank"]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def linear_of(rows: int, seed: int, bias: bool = True, columns: int = COLUMNS) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias, dtype=BF16)
    with torch.no_grad():
        linear.weight.copy_(random(rows, columns, seed=seed))
        if bias:
            linear.bias.copy_(random(rows, seed=seed + 100))
    return linear


def layer_of(kind: str, rows: int, seed: int, bias: bool = True) -> nn.Module:
    linear = linear_of(rows, seed, bias)
    mask = torch.zeros(rows, COLUMNS, dtype=torch.bool)
    mask[:, seed % 2 :: 2] = True
    if kind == "2:4":
        return Sparse24Linear.from_linear(linear, mask)
    if kind == "low-rank":
        # Ranks of 16 and 32, padding included.
        return LowRankLinear.from_linear(linear, 4).eval() if seed % 2 else _wide(linear)
    if kind == "2:4+low-rank":
        return SparseLowRankLinear.from_linear(linear, mask, 4)
    return linear


def _wide(linear: nn.Linear) -> LowRankLinear:
    layer = LowRankLinear.from_linear(linear, 4)
    return LowRankLinear.from_factors(layer.factors().padded(32), layer.bias)


def layers_of(kind: str, rows: tuple[int, ...] = ROWS, bias: bool = True) -> list[nn.Module]:
    return [layer_of(kind, count, seed, bias).eval() for seed, count in enumerate(rows)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_stack_and_back(kind: str, bias: bool) -> None:
    layers = layers_of(kind, bias=bias)
    layers[1].requires_grad_(False)
    product, parts = stack(layers)
    x = random(5, COLUMNS, seed=50)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    tolerance = 4 * unit_of(BF16)
    torch.testing.assert_close(product(x), expected, rtol=tolerance, atol=tolerance)
    back = unstack(product, parts)
    held = {tensor.data_ptr() for tensor in (*product.parameters(), *product.buffers())}
    for layer, again in zip(layers, back, strict=True):
        assert type(again) is type(layer)
        before, after = layer.state_dict(), again.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(layer(x), again(x))
        assert not held & {tensor.data_ptr() for tensor in again.parameters()}
        for module in (layer, again):
            if isinstance(module, Weight24Module):
                module.unpack()
        asks = [p.requires_grad for p in layer.parameters()]
        assert [p.requires_grad for p in again.parameters()] == asks


class Counting(nn.Module):
    """A product that counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.inner(x)
        return result


def together(kind: str = "dense") -> tuple[list[nn.Module], list[OneOfSeveral], Counting]:
    layers = layers_of(kind)
    shared = SideBySide(layers)
    shared.product = counting = Counting(shared.product)
    return layers, [OneOfSeveral(shared, i, COLUMNS) for i in range(len(layers))], counting


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_results_do_not_depend_on_the_order_of_calls(calls: list[tuple[int, int]]) -> None:
    layers, parts, _ = together()
    inputs = [random(2, COLUMNS, seed=60 + i) for i in range(3)]
    for index, which in calls:
        expected = layers[index](inputs[which])
        torch.testing.assert_close(parts[index](inputs[which]), expected, rtol=2**-7, atol=2**-7)


def test_the_product_is_computed_once_a_round() -> None:
    _, parts, product = together()
    shared = parts[0].shared
    for _ in range(3):
        x = random(2, COLUMNS, seed=70)
        results = [part(x) for part in parts]
        assert shared._held is None, "nothing is kept"
        assert [result.shape[-1] for result in results] == list(ROWS)
    assert product.calls == 3


def test_an_input_that_was_changed_in_place_is_seen_by_the_next_round() -> None:
    """As in a static buffer that is filled again before each step."""
    layers, parts, _ = together()
    x = random(2, COLUMNS, seed=80)
    parts[0](x), parts[1](x)  # the round is not finished
    with torch.no_grad():
        x.mul_(2)
    torch.testing.assert_close(parts[0](x), layers[0](x), rtol=2**-7, atol=2**-7)


def test_gradients_and_copies() -> None:
    layers, parts, _ = together()
    x = random(2, COLUMNS, seed=90).requires_grad_()
    torch.cat([part(x) for part in parts], dim=-1).float().sum().backward()
    weights = torch.cat([layer.get_parameter("weight") for layer in layers])
    expected = weights.detach().double().sum(0).float()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0].float(), expected, rtol=0.05, atol=0.1)
    parts[0](x)
    twins = copy.deepcopy(nn.ModuleList(parts))
    first = twins[0]
    assert isinstance(first, OneOfSeveral)
    assert first.shared._held is None
    assert all(twin.shared is first.shared for twin in twins if isinstance(twin, OneOfSeveral))
    assert first.shared is not parts[0].shared


def test_print() -> None:
    _, parts, _ = together()
    assert "in_features=12, out_features=8, 2 of 3 side by side" in repr(parts[1])


class Mlp(nn.Module):
    """As in Llama."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.gate, self.up = layers_of(kind, (16, 16), bias=False)
        self.act = nn.SiLU()
        self.down = linear_of(COLUMNS, 9, False, columns=16)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_an_mlp_and_back(kind: str) -> None:
    mlp = Mlp(kind).eval()
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    x = random(7, COLUMNS, seed=91)
    expected = mlp(x)
    fused = GatedMlp(mlp, ("gate", "up"), "down")
    with pytest.raises(SecateurError, match="expected an MLP whose layers were taken out"):
        fused.restored()
    fused.adopt()
    found = fused(x)
    distance = torch.linalg.vector_norm((found - expected).double())
    assert distance <= 4 * unit_of(BF16) * torch.linalg.vector_norm(expected.double())
    again = fused.restored()
    assert again is mlp
    assert list(mlp.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())
    assert torch.equal(mlp(x), expected)


def unpacked(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, Sparse24Linear)
    return layer.unpack()


@pytest.mark.parametrize(
    ("layers", "activation", "reason"),
    [
        ([linear_of(8, 0), layer_of("2:4", 8, 1)], "none", "of several forms (Linear, Sparse24Li"),
        ([nn.Conv1d(4, 4, 1)], "none", "of several forms (Conv1d)"),
        ([linear_of(8, 0), linear_of(8, 1, bias=False)], "none", "not all with a bias"),
        ([linear_of(8, 0), linear_of(8, 1, columns=16)], "none", "of different columns"),
        ([linear_of(8, 0), linear_of(8, 1).float()], "none", "of different columns, dtypes or"),
        ([unpacked(layer_of("2:4", 8, 1))], "none", "2:4, but not packed"),
        ([Sparse24Linear(8, 16, activation="silu_and_mul")], "none", "fused before"),
        ([linear_of(8, 0), linear_of(4, 1)], "silu_and_mul", "of [8, 4] rows, which are no gate"),
        ([linear_of(7, 0)], "silu_and_mul", "of [7] rows, which are no gate and up"),
        (
            layers_of("2:4", (12, 12)),
            "silu_and_mul",
            "of [12, 12] rows, which 2:4 cannot interleave in eights",
        ),
    ],
)
def test_what_cannot_be_stacked(layers: list[nn.Module], activation: str, reason: str) -> None:
    assert reason in why_not_stacked(layers, activation)
    with pytest.raises(SecateurError, match="expected layers that can be stacked, got layers"):
        stack(layers, activation)


def test_a_down_that_is_shared_beyond_the_layers() -> None:
    leader = LowRankLinear(8, 8, 16)
    followers = [LowRankLinear(8, 8, 16, shares_down_with=leader) for _ in range(2)]
    assert why_not_stacked([leader, *followers]) == ""
    reason = "sharing down with layers that are not among them"
    assert why_not_stacked(followers) == reason
    model = nn.ModuleDict({"a": leader, "b": LowRankLinear(8, 8, 16), "c": followers[0]})
    with pytest.raises(
        SecateurError,
        match=r"ModuleDict that can be .* got a, b: holding the down of a layer that is not among",
    ):
        fuse_side_by_side(model, ["a", "b"])
    groups: Any = LowRankLinear(8, 12, 16, group_rows=(4, 8))
    assert "of factors in groups of [4, 8] rows" in why_not_stacked([groups], "silu_and_mul")
