"""Layers of one input as one product inside a model, and back."""

from collections.abc import Sequence

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.modules import LowRankLinear
from secateur.modules.gated_mlp import GatedMlp
from secateur.modules.side_by_side import OneOfSeveral, SideBySide
from secateur.modules.stack import why_not_stacked
from secateur.modules.weight24 import PACKABLE_DTYPES, Weight24Module


def fused_modules(model: nn.Module) -> dict[str, GatedMlp | OneOfSeveral]:
    """What stands for layers of a model that are multiplied together, by dotted name.

    Of layers side by side the first one stands for all.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, GatedMlp) or (isinstance(module, OneOfSeveral) and module.index == 0)
    }


def require_unfused(model: nn.Module, purpose: str) -> None:
    """Raise SecateurError where layers are fused: state dicts then have other names and shapes."""
    fused = fused_modules(model)
    if fused:
        raise SecateurError(
            f"expected a model without fused layers {purpose}, but {next(iter(fused))} and "
            f"{len(fused) - 1} more are fused: undo the acceleration first (Acceleration.undo())"
        )


def why_not_fused(model: nn.Module, names: Sequence[str], activation: str = "none") -> str:
    """Why layers of a model cannot be fused, in words; empty if they can."""
    layers = [model.get_submodule(name) for name in names]
    leaders = {id(layer) for layer in layers if isinstance(layer, LowRankLinear)}
    for layer in model.modules():
        if isinstance(layer, LowRankLinear) and layer.shares_down and layer not in layers:
            if id(layer.down_holder()) in leaders:
                return "holding the down of a layer that is not among them"
    return why_not_stacked(layers, activation)


@torch.no_grad()
def fuse_side_by_side(
    model: nn.Module, names: Sequence[str], together: SideBySide | None = None
) -> None:
    """Multiply layers of one input together; their parent calls them as before.

    Args:
        model: changed in place.
        names: of the layers, in the order in which they are called.
        together: the layers stacked, where that was done before.

    Raises:
        SecateurError: they cannot be fused; nothing was changed.
    """
    _require(model, names, why_not_fused(model, names))
    layers = [model.get_submodule(name) for name in names]
    together = together or SideBySide(layers)
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        columns = layer.in_features
        assert isinstance(columns, int)
        _put(model, name, OneOfSeveral(together, index, columns).train(layer.training))


@torch.no_grad()
def fuse_gated_mlp(model: nn.Module, name: str, mlp: GatedMlp) -> None:
    """Put a fused MLP, made of the one at `name`, into its place."""
    old = model.get_submodule(name)
    mlp.adopt()
    _put(model, name, mlp.train(old.training))


@torch.no_grad()
def unfuse(model: nn.Module) -> list[str]:
    """Undo all fusing of a model: every layer as it was, bit for bit, under its own name.

    Returns:
        names of the layers and MLPs that stand alone again.

    Raises:
        SecateurError: a 2:4 layer was cast to a dtype that cannot be packed; nothing was changed.
    """
    _require_packable(model)
    found = []
    for name, module in list(model.named_modules()):
        if isinstance(module, GatedMlp):
            _put(model, name, module.restored())
            found.append(name)
    members: dict[int, list[tuple[str, OneOfSeveral]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, OneOfSeveral):
            members.setdefault(id(module.shared), []).append((name, module))
    for group in members.values():
        layers = group[0][1].shared.layers()
        for name, module in group:
            _put(model, name, layers[module.index].train(module.training))
            found.append(name)
    return found


def _require_packable(model: nn.Module) -> None:
    for name, module in fused_modules(model).items():
        product = module.gate_up if isinstance(module, GatedMlp) else module.shared.product
        if isinstance(product, Weight24Module) and product.value_dtype not in PACKABLE_DTYPES:
            raise SecateurError(
                f"expected fused 2:4 layers in bfloat16 or float16 to take apart, but {name} is in "
                f"{str(product.value_dtype).removeprefix('torch.')}: cast the model back first"
            )


def _require(model: nn.Module, names: Sequence[str], reason: str) -> None:
    if reason:
        raise SecateurError(
            f"expected layers of {type(model).__name__} that can be multiplied together, got "
            f"{', '.join(names)}: {reason}"
        )


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
