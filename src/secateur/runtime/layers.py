"""The linear layers of a model as far as accelerating it cares, and what dispatch is asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.models.swap import (
    compressed_modules,
    dense_sites,
    is_sparse24,
)
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.weight24 import PACKABLE_DTYPES, Weight24Module
from secateur_kernels.dispatch import DeviceFacts, Problem

Form = Literal["dense", "2:4", "low-rank", "2:4+low-rank"]


@dataclass(frozen=True)
class LayerFacts:
    """One linear layer, without its tensors."""

    name: str
    shape: tuple[int, int]
    """(N, K)."""
    dtype: torch.dtype
    form: Form
    could_be_24: bool = False
    """A dense layer that is exactly 2:4."""
    rank: int = 0
    groups: int = 1
    num_bytes: int = 0

    @property
    def is_packable(self) -> bool:
        """Whether its dtype is one that kernels for 2:4 know."""
        return self.dtype in PACKABLE_DTYPES


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model's blocks that may be replaced or fused, in the order of its modules.

    Layers with hooks are left out: they belong to whoever set the hooks, as accelerate does to
    move weights.

    Raises:
        SecateurError: the model has no blocks.
    """
    sites = dense_sites(model)
    compressed = compressed_modules(model)
    return {
        name: module
        for name, module in model.named_modules()
        if (name in sites or name in compressed) and not has_hooks(module)
    }


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module does more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or hasattr(module, "_hf_hook")
        or "forward" in vars(module)
    )


def facts_of(name: str, module: nn.Module) -> LayerFacts:
    """What matters of a layer from `linear_layers`."""
    num_bytes = bytes_of([module])
    if isinstance(module, LowRankLinear | Sparse24Linear | SparseLowRankLinear):
        shape = (module.out_features, module.in_features)
        dtype = module.value_dtype if isinstance(module, Weight24Module) else module.up.dtype
        if isinstance(module, Sparse24Linear):
            return LayerFacts(name, shape, dtype, "2:4", num_bytes=num_bytes)
        form: Form = "low-rank" if isinstance(module, LowRankLinear) else "2:4+low-rank"
        rank, groups = module.rank, len(module.group_rows)
        return LayerFacts(name, shape, dtype, form, False, rank, groups, num_bytes)
    weight = module.weight
    assert isinstance(weight, Tensor)
    matrix = weight if isinstance(module, nn.Linear) else weight.T
    rows, columns = matrix.shape
    could_be = is_sparse24(matrix.detach())
    return LayerFacts(name, (rows, columns), weight.dtype, "dense", could_be, num_bytes=num_bytes)


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    tensors = {
        id(tensor): tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


def problem_of(
    layers: Sequence[LayerFacts], form: Form, m: int, device: DeviceFacts, dense_copy: bool = False
) -> Problem:
    """What dispatch decides on for layers that are multiplied together.

    Args:
        layers: of one input, one dtype.
        form: which they have, or would have; not dense.
        m: tokens.
        device: where.
        dense_copy: whether a dense copy is kept beside the packed weight.
    """
    rows, columns = sum(layer.shape[0] for layer in layers), layers[0].shape[1]
    dtype = layers[0].dtype
    if form == "2:4":
        return Problem("sparse24_linear", m, rows, columns, dtype, device, dense_copy=dense_copy)
    rank, groups = max(layer.rank for layer in layers), sum(layer.groups for layer in layers)
    if form == "low-rank":
        return Problem("low_rank_linear", m, rows, columns, dtype, device, rank, groups)
    return Problem("sparse24_low_rank_linear", m, rows, columns, dtype, device, rank, groups)
