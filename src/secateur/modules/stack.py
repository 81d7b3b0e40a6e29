"""Linear layers of one input as one layer, their rows one below the other, and back bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules.dense_linear import dense_linear
from secateur.modules.low_rank_linear import LowRankLinear
from secateur.modules.sparse24_linear import Sparse24Linear
from secateur.modules.sparse_low_rank_linear import SparseLowRankLinear
from secateur.modules.weight24 import Weight24Module
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.layouts.fragment24 import SUB_TILE_ROWS

SILU = "silu_and_mul"

# Where a compressed layer notes the class that it stands in for.
REPLACED_CLASS = "_replaced_class"


@dataclass(frozen=True)
class PartOfStack:
    """What has to be known of a layer to get it back out of a stack."""

    rows: int
    rank: int = 0
    """Of each group, before it was padded to that of the others; 0 without factors."""
    group_rows: tuple[int, ...] = ()
    joint: bool = False
    """Whether all layers of the stack share one `down`."""
    trainable: frozenset[str] = frozenset()
    """Parameters that ask for a gradient, a packed weight among them."""
    replaced: type[nn.Module] | None = None
    """The class that a compressed layer stands in for, where that is noted."""


class DenseGateUp(nn.Module):
    """silu(x @ gate.T) * (x @ up.T) of a dense weight with rows [gate; up]."""

    activation = SILU

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N / 2]."""
        gate, up = self.linear(x).chunk(2, dim=-1)
        y: Tensor = F.silu(gate) * up
        return y


def why_not_stacked(layers: Sequence[nn.Module], activation: str = "none") -> str:
    """Why layers cannot be one layer, in words; empty if they can.

    Args:
        layers: of one input.
        activation: `none`, or `silu_and_mul` for [gate, up] or one layer with both.
    """
    kinds = {type(layer) for layer in layers}
    if len(kinds) > 1 or not kinds <= {
        nn.Linear,
        Sparse24Linear,
        LowRankLinear,
        SparseLowRankLinear,
    }:
        return f"of several forms ({', '.join(sorted(kind.__name__ for kind in kinds))})"
    if len({_facts(layer) for layer in layers}) > 1:
        return "of different columns, dtypes or devices, or not all with a bias"
    if any(getattr(layer, "activation", "none") != "none" for layer in layers):
        return "fused before"
    if any(isinstance(layer, Weight24Module) and not layer.is_packed for layer in layers):
        return "2:4, but not packed"
    if _shared_beyond(layers):
        return "sharing down with layers that are not among them"
    return _why_no_gate_up(layers) if activation == SILU else ""


def _facts(layer: nn.Module) -> tuple[object, ...]:
    tensor = next((t for t in (*layer.parameters(), *layer.buffers())), None)
    if tensor is None and isinstance(layer, LowRankLinear):
        tensor = layer.held_down()
    dtype = layer.value_dtype if isinstance(layer, Weight24Module) else getattr(tensor, "dtype", 0)
    return layer.in_features, dtype, getattr(tensor, "device", None), layer.bias is not None


def _shared_beyond(layers: Sequence[nn.Module]) -> bool:
    low_rank = [layer for layer in layers if isinstance(layer, LowRankLinear)]
    holders = {id(layer.down) for layer in low_rank if not layer.shares_down}
    return any(layer.shares_down and id(layer.held_down()) not in holders for layer in low_rank)


def _why_no_gate_up(layers: Sequence[nn.Module]) -> str:
    rows = [_rows_of(layer) for layer in layers]
    if len(rows) > 2 or len(set(rows)) > 1 or sum(rows) % 2:
        return f"of {rows} rows, which are no gate and up"
    if isinstance(layers[0], Weight24Module) and sum(rows) % SUB_TILE_ROWS:
        return f"of {rows} rows, which 2:4 cannot interleave in eights"
    groups = getattr(layers[0], "group_rows", ())
    if len(layers) == 1 and len(groups) > 1 and (len(groups) != 2 or len(set(groups)) > 1):
        return f"of factors in groups of {list(groups)} rows"
    return ""


def stack(
    layers: Sequence[nn.Module], activation: str = "none"
) -> tuple[nn.Module, tuple[PartOfStack, ...]]:
    """One layer [sum of N, K] in the place of several.

    Args:
        layers: `nn.Linear`, or compressed layers of one class, 2:4 packed.
        activation: `none`, or `silu_and_mul`: then the result is [..., N / 2].

    Returns:
        the layer, and what `unstack` needs.

    Raises:
        SecateurError: they cannot be stacked; says why.
    """
    if reason := why_not_stacked(layers, activation):
        raise SecateurError(f"expected layers that can be stacked, got layers {reason}")
    low_rank = [layer for layer in layers if isinstance(layer, LowRankLinear)]
    joint = len(low_rank) > 1 and len({id(layer.held_down()) for layer in low_rank}) == 1
    parts = tuple(_part_of(layer, joint) for layer in layers)
    biases = [layer.bias for layer in layers if isinstance(layer.bias, Tensor)]
    bias = torch.cat([b.detach() for b in biases]) if biases else None
    return _product(layers, bias, activation, joint).eval(), parts


def _part_of(layer: nn.Module, joint: bool) -> PartOfStack:
    trainable = frozenset(name for name, p in layer.named_parameters() if p.requires_grad)
    if isinstance(layer, Weight24Module) and layer.trains_weight:
        trainable |= {"weight"}
    replaced = getattr(layer, REPLACED_CLASS, None)
    rows = _rows_of(layer)
    if isinstance(layer, LowRankLinear | SparseLowRankLinear):
        groups = tuple(layer.group_rows)
        return PartOfStack(rows, layer.rank, groups, joint, trainable, replaced)
    return PartOfStack(rows, trainable=trainable, replaced=replaced)


def _rows_of(layer: nn.Module) -> int:
    rows = layer.out_features
    assert isinstance(rows, int)
    return rows


def _product(
    layers: Sequence[nn.Module], bias: Tensor | None, activation: str, joint: bool
) -> nn.Module:
    sparse = [layer.canonical() for layer in layers if isinstance(layer, Weight24Module)]
    factored = [la for la in layers if isinstance(la, LowRankLinear | SparseLowRankLinear)]
    factors = _stacked_factors([layer.factors() for layer in factored], joint)
    if sparse and factors:
        weight = Canonical24.concatenate_rows(sparse)
        return SparseLowRankLinear.from_parts(weight, factors, bias, activation=activation)
    if sparse:
        weight = Canonical24.concatenate_rows(sparse)
        return Sparse24Linear.from_weight(weight, bias, activation=activation)
    if factors:
        return LowRankLinear.from_factors(factors, bias, activation=activation)
    dense = torch.cat([la.weight.detach() for la in layers if isinstance(la, nn.Linear)])
    linear = dense_linear(dense, None if bias is None else nn.Parameter(bias), "none")
    return DenseGateUp(linear) if activation == SILU else linear


def _stacked_factors(factors: Sequence[LowRank], joint: bool) -> LowRank | None:
    if not factors:
        return None
    if joint and all(len(part.group_rows) == 1 for part in factors):
        up = torch.cat([part.up for part in factors])
        return LowRank(factors[0].down, up, (len(up),))
    return LowRank.stack(factors)


def unstack(product: nn.Module, parts: Sequence[PartOfStack]) -> list[nn.Module]:
    """The layers that `stack` was given, bit for bit, in memory of their own.

    Args:
        product: from `stack`.
        parts: from the same call.
    """
    if isinstance(product, DenseGateUp):
        product = product.linear
    biases = _cut(getattr(product, "bias", None), parts)
    if isinstance(product, nn.Linear):
        weights = _cut(product.weight, parts)
        layers: list[nn.Module] = [
            dense_linear(weight, None if bias is None else nn.Parameter(bias), "none")
            for weight, bias in zip(weights, biases, strict=True)
            if weight is not None
        ]
    elif isinstance(product, LowRankLinear):
        layers = _low_rank_layers(product.factors(), biases, parts)
    else:
        layers = _sparse_layers(product, biases, parts)
    for layer, part in zip(layers, parts, strict=True):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in part.trainable)
        if isinstance(layer, Weight24Module):
            layer.trains_weight = "weight" in part.trainable
        if part.replaced is not None:
            setattr(layer, REPLACED_CLASS, part.replaced)
    return layers


def _bounds(parts: Sequence[PartOfStack]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate((part.rows for part in parts), initial=0)))


def _cut(tensor: Tensor | None, parts: Sequence[PartOfStack]) -> list[Tensor | None]:
    if tensor is None:
        return [None] * len(parts)
    return [tensor.detach()[start:stop].clone() for start, stop in _bounds(parts)]


def _cut_factors(stacked: LowRank, parts: Sequence[PartOfStack]) -> list[LowRank]:
    joint = len(stacked.group_rows) == 1
    downs = stacked.down.view(len(stacked.group_rows), stacked.rank, -1)
    found, group = [], 0
    for part, (start, stop) in zip(parts, _bounds(parts), strict=True):
        groups = len(part.group_rows)
        own = downs if joint else downs[group : group + groups]
        down = own[:, : part.rank].flatten(0, 1).clone()
        up = stacked.up[start:stop, : part.rank].clone()
        found.append(LowRank(down.contiguous(), up.contiguous(), part.group_rows))
        group += groups
    return found


def _low_rank_layers(
    stacked: LowRank, biases: Sequence[Tensor | None], parts: Sequence[PartOfStack]
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    leader: LowRankLinear | None = None
    for factors, bias, part in zip(_cut_factors(stacked, parts), biases, parts, strict=True):
        layer = LowRankLinear.from_factors(factors, bias, shares_down_with=leader)
        layers.append(layer)
        leader = (leader or layer) if part.joint else None
    return layers


def _sparse_layers(
    product: nn.Module, biases: Sequence[Tensor | None], parts: Sequence[PartOfStack]
) -> list[nn.Module]:
    assert isinstance(product, Sparse24Linear | SparseLowRankLinear)
    whole = product.canonical()
    weights = [whole.slice_rows(start, stop) for start, stop in _bounds(parts)]
    if isinstance(product, Sparse24Linear):
        return [
            Sparse24Linear.from_weight(weight, bias)
            for weight, bias in zip(weights, biases, strict=True)
        ]
    factors = _cut_factors(product.factors(), parts)
    return [
        SparseLowRankLinear.from_parts(weight, part, bias)
        for weight, part, bias in zip(weights, factors, biases, strict=True)
    ]
