"""The part of a linear layer that one of several devices holds: tensor parallelism.

Rows cut (column-parallel in the literature): every device has all of x and makes some columns of y.
Columns cut (row-parallel): every device has some columns of x, and the results are added.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.dense_linear import dense_linear
from secateur.modules.stack import SILU
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.layouts.canonical24 import COLUMNS_PER_BYTE

Dim = Literal["rows", "columns"]
Bounds = tuple[int, int]
AnyLinear = nn.Linear | LowRankLinear | Sparse24Linear | SparseLowRankLinear


@torch.no_grad()
def shard_linear(
    layer: nn.Module, dim: Dim, rank: int, size: int, parts: Sequence[int] | None = None
) -> AnyLinear:
    """The shard of a linear layer for one device, in memory of its own.

    Compressed weights are cut as they are: kept values with their indices, factors along N in `up`
    and along K in `down`. 2:4 shards are packed. Cut along columns, the first device alone has the
    bias, so that the sum of all results has it once.

    Args:
        layer: dense or compressed, [N, K]; it is not changed.
        dim: `rows` cuts N, `columns` cuts K.
        rank: which device, from 0.
        size: number of devices.
        parts: rows of the layers that were fused in this one (q, k and v; gate and up), each of
            which is cut by itself; by default groups of factors and the halves of
            `silu_and_mul`.

    Returns:
        a layer of the same class, [N / size, K] or [N, K / size].

    Raises:
        SecateurError: the sizes cannot be divided so (2:4 columns only in steps of 8), or it is
            none of these layers.
    """
    if not isinstance(layer, AnyLinear):
        raise SecateurError(
            f"expected a linear layer, dense or compressed, got {type(layer).__name__}"
        )
    if size < 1 or not 0 <= rank < size:
        raise SecateurError(f"expected a rank of 0 to {size - 1} of {size} devices, got {rank}")
    if dim == "rows":
        return _shard_rows(layer, _row_bounds(layer, rank, size, parts))
    if dim == "columns":
        return _shard_columns(layer, _column_bounds(layer, rank, size), rank == 0)
    raise SecateurError(f"expected dim rows or columns, got {dim!r}")


def _activation(layer: AnyLinear) -> str:
    return "none" if isinstance(layer, nn.Linear) else layer.activation


def _row_bounds(
    layer: AnyLinear, rank: int, size: int, parts: Sequence[int] | None
) -> list[Bounds]:
    """By part, the rows of this device."""
    rows = layer.out_features
    if parts is None and isinstance(layer, LowRankLinear | SparseLowRankLinear):
        parts = layer.group_rows if len(layer.group_rows) > 1 else None
    if parts is None:
        parts = (rows // 2, rows // 2) if _activation(layer) == SILU else (rows,)
    if sum(parts) != rows:
        raise SecateurError(f"expected parts that add up to {rows} rows, got {list(parts)}")
    for part in parts:
        if part % size:
            raise SecateurError(f"expected rows that {size} devices can share, got {part}")
    starts = pairwise(accumulate(parts, initial=0))
    return [
        (start + rank * (stop - start) // size, start + (rank + 1) * (stop - start) // size)
        for start, stop in starts
    ]


def _column_bounds(layer: AnyLinear, rank: int, size: int) -> Bounds:
    columns = layer.in_features
    step = 1 if isinstance(layer, nn.Linear | LowRankLinear) else COLUMNS_PER_BYTE
    if columns % (size * step):
        raise SecateurError(
            f"expected columns that {size} devices can share"
            + (f" in steps of {step}" if step > 1 else "")
            + f", got {columns}"
        )
    if _activation(layer) == SILU:
        raise SecateurError(
            "expected a layer without activation to cut its columns: gate and up are multiplied "
            "before the results of all devices are added"
        )
    each = columns // size
    return rank * each, (rank + 1) * each


def _shard_rows(layer: AnyLinear, bounds: Sequence[Bounds]) -> AnyLinear:
    rows = torch.cat([torch.arange(start, stop, device="cpu") for start, stop in bounds])
    bias = None if layer.bias is None else _rows(layer.bias, rows)
    if isinstance(layer, nn.Linear):
        return _dense(_rows(layer.weight, rows), bias)
    if isinstance(layer, LowRankLinear):
        factors = _factor_rows(layer.factors(), bounds)
        return LowRankLinear.from_factors(factors, bias, activation=layer.activation)
    whole = layer.canonical()
    cut = [whole.slice_rows(start, stop) for start, stop in bounds]
    return _sparse(layer, Canonical24.concatenate_rows(cut), bounds, bias)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.detach()[rows.to(tensor.device)]


def _sparse(
    layer: Sparse24Linear | SparseLowRankLinear,
    weight: Canonical24,
    bounds: Sequence[Bounds],
    bias: Tensor | None,
) -> AnyLinear:
    if isinstance(layer, Sparse24Linear):
        return Sparse24Linear.from_weight(weight, bias, activation=layer.activation)
    factors = _factor_rows(layer.factors(), bounds)
    return SparseLowRankLinear.from_parts(weight, factors, bias, activation=layer.activation)


def _factor_rows(factors: LowRank, bounds: Sequence[Bounds]) -> LowRank:
    """Bounds ascend, so that the rows of a group stay together."""
    up = torch.cat([factors.up[start:stop] for start, stop in bounds])
    if len(factors.group_rows) == 1:
        return LowRank(factors.down.clone(), up, (len(up),))
    kept = tuple(
        sum(max(0, min(stop, last) - max(start, first)) for start, stop in bounds)
        for first, last in pairwise(accumulate(factors.group_rows, initial=0))
    )
    return LowRank(factors.down.clone(), up, kept)


def _shard_columns(layer: AnyLinear, bounds: Bounds, with_bias: bool) -> AnyLinear:
    start, stop = bounds
    bias = layer.bias.detach().clone() if with_bias and layer.bias is not None else None
    if isinstance(layer, nn.Linear):
        return _dense(layer.weight.detach()[:, start:stop].clone(), bias)
    if isinstance(layer, LowRankLinear):
        return LowRankLinear.from_factors(_factor_columns(layer.factors(), start, stop), bias)
    weight = layer.canonical().slice_columns(start, stop)
    if isinstance(layer, Sparse24Linear):
        return Sparse24Linear.from_weight(weight, bias)
    factors = _factor_columns(layer.factors(), start, stop)
    return SparseLowRankLinear.from_parts(weight, factors, bias)


def _factor_columns(factors: LowRank, start: int, stop: int) -> LowRank:
    down = factors.down[:, start:stop].clone()
    return LowRank(down, factors.up.clone(), factors.group_rows)


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    return dense_linear(weight, None if bias is None else nn.Parameter(bias), "none")
