"""The shards of a fused layer, once loaded, as the fewest modules that compute them.

Neighbours of one form become one module and so one launch: dense ones, 2:4 ones, and factors of one
rank, counted in steps of the kernels. What differs stays apart, so that no shard is computed in a
dearer form than its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.integrations.vllm.shards import Leaf, Shard
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.dense_linear import dense_linear
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.layouts.low_rank import padded_rank


@dataclass(frozen=True, eq=False)
class LoadedShard:
    """A shard with its tensors, `down` included where another shard holds it."""

    shard: Shard
    tensors: Mapping[Leaf, Tensor]


def build_segments(shards: Sequence[LoadedShard], bias: Tensor | None = None) -> nn.ModuleList:
    """Modules whose outputs, side by side, are those of the layer; 2:4 weights packed.

    Args:
        shards: in the order of their rows; weights in bf16 or fp16 where they are 2:4.
        bias: [N] of all shards together, rounded once with the product.

    Raises:
        SecateurError: a weight is not legal; names its layer.
    """
    segments = nn.ModuleList()
    start = 0
    for _, group in groupby(shards, _form):
        parts = list(group)
        try:
            segment = _build(parts)
        except SecateurError as error:
            names = ", ".join(dict.fromkeys(part.shard.name for part in parts))
            raise SecateurError(f"{names}: {error}") from None
        stop = start + sum(part.shard.rows for part in parts)
        if bias is not None:
            part = bias.detach()[start:stop].clone()
            segment.bias = nn.Parameter(part, requires_grad=False)
        segments.append(segment)
        start = stop
    return segments.requires_grad_(False)


def tensors_of(segments: Iterable[nn.Module]) -> Iterator[Tensor]:
    """All that the modules hold, in an order that their forms alone decide."""
    for segment in segments:
        yield from segment.parameters()
        yield from segment.buffers()


def replace_values(segments: Sequence[nn.Module], by: Iterable[nn.Module]) -> None:
    """Copy the values of modules of the same forms and shapes into memory that stays where it is.

    Args:
        segments: keep their tensors.
        by: what `build_segments` made of other values.
    """
    for held, new in zip(tensors_of(segments), tensors_of(by), strict=True):
        held.detach().copy_(new)


def apply_segments(segments: Iterable[nn.Module], x: Tensor) -> Tensor:
    """[..., K] -> [..., N]: the outputs of all segments side by side."""
    outputs = [segment(x) for segment in segments]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _form(loaded: LoadedShard) -> tuple[str, int, bool]:
    """What neighbours must have in common to become one module."""
    spec = loaded.shard.spec
    if spec is None:
        return "dense", 0, False
    return spec.kind, padded_rank(spec.rank or 0), spec.group_rows is not None


def _build(parts: Sequence[LoadedShard]) -> nn.Module:
    spec = parts[0].shard.spec
    if spec is None:
        return dense_linear(_joined(parts), None, "none")
    if spec.kind == "low_rank":
        return LowRankLinear.from_factors(_factors(parts))
    weight = Canonical24.concatenate_rows(
        [
            Canonical24(part.tensors["weight"].contiguous(), part.tensors["indices"].contiguous())
            for part in parts
        ]
    )
    if spec.kind == "sparse24":
        return Sparse24Linear.from_weight(weight)
    return SparseLowRankLinear.from_parts(weight, _factors(parts))


def _joined(parts: Sequence[LoadedShard]) -> Tensor:
    # A copy also of one: the tensors are views of memory that is given back.
    return torch.cat([part.tensors["weight"] for part in parts])


def _factors(parts: Sequence[LoadedShard]) -> LowRank:
    """All factors side by side; shards that share a `down` are one group of rows."""
    groups = []
    for _, sharing in groupby(parts, lambda part: part.shard.down_of):
        same = list(sharing)
        up = torch.cat([part.tensors["up"] for part in same])
        down = same[0].tensors["down"].clone()
        spec = same[0].shard.spec
        rows = (spec.group_rows if spec else None) or (len(up),)
        factors = LowRank(down, up, tuple(rows))
        groups.append(factors.padded(padded_rank(factors.rank)))
    return LowRank.stack(groups)
