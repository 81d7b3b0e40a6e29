"""Layers as a compact checkpoint holds them, and what they compute."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from integrations.compact_models import random_mask
from torch import Tensor

from secateur.integrations.layer_specs import LayerSpec
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.testing.tolerance import (
    FP32_UNIT,
    Bounded,
    add,
    exact,
    low_rank_product,
    product,
    unit_of,
)

DTYPE = torch.bfloat16


@dataclass(frozen=True, eq=False)
class Stored:
    """A layer: its spec (None: dense) and its tensors by leaf."""

    spec: LayerSpec | None
    tensors: dict[str, Tensor]

    def sparse(self) -> Tensor | None:
        """The dense or 2:4 part [N, K]."""
        if self.spec is None:
            return self.tensors["weight"]
        if self.spec.kind == "low_rank":
            return None
        return Canonical24(self.tensors["weight"], self.tensors["indices"]).to_dense()

    def factors(self, down: Tensor | None = None) -> LowRank | None:
        """The low-rank part."""
        if self.spec is None or self.spec.rank is None:
            return None
        up = self.tensors["up"]
        groups = self.spec.group_rows or (len(up),)
        return LowRank(self.tensors["down"] if down is None else down, up, groups)


def stored(
    kind: str, rows: int, columns: int, rank: int = 16, bias: bool = False, seed: int = 0
) -> Stored:
    """A random layer of a kind, or `dense`."""
    generator = torch.Generator().manual_seed(seed * 1009 + rows)
    weight = torch.randn(rows, columns, generator=generator).to(DTYPE)
    tensors: dict[str, Tensor] = {}
    if kind == "dense":
        tensors["weight"] = weight
    if kind.startswith("sparse24"):
        kept = Canonical24.from_dense(weight, random_mask((rows, columns), generator))
        tensors |= {"weight": kept.values, "indices": kept.indices}
    if kind.endswith("low_rank"):
        tensors["down"] = torch.randn(rank, columns, generator=generator).to(DTYPE)
        tensors["up"] = torch.randn(rows, rank, generator=generator).to(DTYPE)
    if bias:
        tensors["bias"] = torch.randn(rows, generator=generator).to(DTYPE)
    if kind == "dense":
        return Stored(None, tensors)
    has_rank = kind.endswith("low_rank")
    return Stored(LayerSpec(kind=kind, bias=bias, rank=rank if has_rank else None), tensors)  # type: ignore[arg-type]


def expected(layer: Stored, x: Tensor, down: Tensor | None = None, bias: bool = True) -> Bounded:
    """y = x @ weight.T + bias in float64, and how far a backend may be before its rounding."""
    sparse, factors = layer.sparse(), layer.factors(down)
    unit = FP32_UNIT
    if sparse is None:
        assert factors is not None
        # The backend `two_gemms` rounds both products.
        unit = unit_of(DTYPE)
        result = low_rank_product(x, factors, unit).rounded(unit)
    elif factors is None:
        result = product(x, sparse)
    else:
        result = add(product(x, sparse), low_rank_product(x, factors))
    if bias and "bias" in layer.tensors:
        result = add(result, exact(layer.tensors["bias"].expand(result.value.shape)), unit)
    return result


def layer_list(layers: Mapping[str, Stored]) -> list[dict[str, object]]:
    """The key `layers` of a configuration."""
    plain = []
    for name, layer in layers.items():
        if layer.spec is None:
            continue
        item: dict[str, object] = {"kind": layer.spec.kind, "bias": layer.spec.bias}
        if layer.spec.rank is not None:
            item["rank"] = layer.spec.rank
        plain.append({**item, "modules": [name]})
    return plain
