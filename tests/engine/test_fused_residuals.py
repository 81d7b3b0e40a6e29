"""Which sums of compiled blocks go into the layers in front of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn
from torch.fx import GraphModule

from secateur import accelerate
from secateur.engine import Engine
from secateur.engine.fused_residuals import fuse_residuals
from secateur.models.swap import convert_sparse24
from secateur.modules import SparseLowRankLinear
from secateur_kernels import Canonical24, Fragment24, LowRank, low_rank_linear, sparse24_linear

SIZE = 64
Layer = Callable[[Tensor], Tensor]


def sparse() -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE, dtype=torch.bfloat16)
    weight.view(-1, 4)[:, ::2] = 0
    return weight


def factors() -> LowRank:
    torch.manual_seed(1)
    up, down = torch.randn(SIZE, 16), torch.randn(16, SIZE)
    return LowRank.from_factors(up.bfloat16(), down.bfloat16())


def layers() -> dict[str, Layer]:
    weight, low_rank = Fragment24.from_dense(sparse()), factors()
    both = SparseLowRankLinear.from_parts(Canonical24.from_dense(sparse()), low_rank)
    return {
        "2:4": lambda x: sparse24_linear(x, weight),
        "low rank": lambda x: low_rank_linear(x, low_rank),
        "2:4 plus low rank": both,
    }


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(2, 3, SIZE).bfloat16(), torch.randn(2, 3, SIZE).bfloat16()


def fused(function: Callable[..., Any], *arguments: Tensor) -> tuple[int, Any]:
    """How many sums went, and what the compiled function gives."""
    gone: list[int] = []

    def count(graph: GraphModule, _: Any) -> Callable[..., Any]:
        gone.append(fuse_residuals(graph))
        graph.graph.lint()
        return graph.forward

    torch.compiler.reset()
    result = torch.compile(function, backend=count, fullgraph=True)(*arguments)
    (number,) = gone
    return number, result


@pytest.mark.parametrize("form", ["2:4", "low rank", "2:4 plus low rank"])
def test_a_sum_behind_a_layer_goes_into_it_on_either_side(form: str) -> None:
    layer = layers()[form]
    x, residual = inputs()
    for function in (
        lambda x, r: r + layer(x),
        lambda x, r: layer(x) + r,
        lambda x, r: torch.add(r, layer(x)),
    ):
        number, result = fused(function, x, residual)
        assert number == 1
        # Both round the sum, and one of them the layer's part of it, each by 2^-8 at most.
        part = layer(x)
        atol = 2**-8 * part.abs().max().item()
        torch.testing.assert_close(result, residual + part, rtol=2**-7, atol=atol)


def test_both_sums_of_a_block_go() -> None:
    first, second = layers()["2:4"], layers()["low rank"]
    x, _ = inputs()

    def block(x: Tensor) -> Tensor:
        x = x + first(x)
        return x + second(x.tanh())

    assert fused(block, x)[0] == 2


def test_what_else_is_written_to_does_not_matter() -> None:
    layer = layers()["2:4"]

    def function(x: Tensor, r: Tensor) -> Tensor:
        other = x.clone()
        view = r[:1]
        y = layer(x)
        other.mul_(2)
        return r + y + other + view

    assert fused(function, *inputs())[0] == 1


def untouched() -> dict[str, Callable[[Tensor, Tensor], Any]]:
    layer, weight = layers()["2:4"], Fragment24.from_dense(sparse())

    def used_twice(x: Tensor, r: Tensor) -> Tensor:
        y = layer(x)
        return (r + y) * y

    def behind_the_layer(x: Tensor, r: Tensor) -> Tensor:
        y = layer(x)
        return y + r.tanh()

    def written_to(x: Tensor, r: Tensor) -> Tensor:
        r = r.clone()
        y = layer(x)
        r.mul_(2)
        return r + y

    def written_to_by_a_view(x: Tensor, r: Tensor) -> Tensor:
        r = r.clone()
        view = r[:1]
        y = layer(x)
        view.mul_(2)
        return r + y

    def what_it_views_is_written_to(x: Tensor, r: Tensor) -> Tensor:
        whole = torch.stack([r, x])
        r = whole[0]
        y = layer(x)
        whole[:, 1:] = 0
        return r + y

    def written_to_by_one_of_its_parts(x: Tensor, r: Tensor) -> Tensor:
        r = r.clone()
        parts = r.chunk(2)
        y = layer(x)
        torch._foreach_mul_(parts, 2)
        return y + r

    def in_place(x: Tensor, r: Tensor) -> Tensor:
        total = r.clone()
        total += layer(x)
        return total

    return {
        "written to": written_to,
        "written to by a view": written_to_by_a_view,
        "what it views is written to": what_it_views_is_written_to,
        "written to by one of its parts": written_to_by_one_of_its_parts,
        "in place": in_place,
        "used twice": used_twice,
        "made behind the layer": behind_the_layer,
        "a number": lambda x, r: layer(x) + 1.0,
        # Made in front of the layer, so that only their kind keeps them apart.
        "of another shape": lambda x, r: r[:, :1] + layer(x),
        "of another dtype": lambda x, r: r.float() + layer(x),
        "scaled": lambda x, r: torch.add(r, layer(x), alpha=2),
        "a residual is there": lambda x, r: r + sparse24_linear(x, weight, residual=x),
        "no layer": lambda x, r: r + x.tanh(),
        "a product": lambda x, r: r * layer(x),
        "twice the layer": lambda x, r: (y := layer(x)) + y,
    }


@pytest.mark.parametrize("case", list(untouched()))
def test_other_sums_stay(case: str) -> None:
    function = untouched()[case]
    x, residual = inputs()
    number, result = fused(function, x, residual)
    assert number == 0
    torch.testing.assert_close(result, function(x, residual), rtol=0, atol=0)


def test_blocks_of_a_sparse_model_add_no_residuals_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    residuals: list[bool] = []

    def keep(graph: GraphModule, _: Any) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            if str(node.target).startswith("secateur.sparse24_linear"):
                residuals.append(node.args[7] is not None)
        return graph.forward

    monkeypatch.setattr("secateur.engine.fused_residuals.COMPILER", keep)
    torch.compiler.reset()
    model = tiny_model("llama", num_blocks=2).bfloat16()
    for block in model.model.layers:
        for linear in (m for m in block.modules() if isinstance(m, nn.Linear)):
            groups = linear.weight.data.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0.0)
    assert len(convert_sparse24(model)) == 2 * 7
    accelerate(model, force=True)
    Engine(model, max_batch_size=1, max_length=64, compile=True).warm_up()
    # Of the block's q/k/v, o, gate/up and down: o and down.
    assert residuals == [False, True, False, True]
