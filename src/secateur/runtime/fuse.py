"""Fuses the layers of a model where that was tried and gave the same results."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from secateur.models.fuse import fuse_gated_mlp, fuse_side_by_side, why_not_fused
from secateur.modules.gated_mlp import GatedMlp
from secateur.modules.side_by_side import SideBySide
from secateur.modules.stack import SILU
from secateur.runtime.acceleration import Fused
from secateur.runtime.layers import LayerFacts, has_hooks
from secateur.runtime.probe import Call, nearly_equal
from secateur.runtime.units import gated_mlp_candidates

# Where SiLU differs most from other gates: at inputs of about the first size. At the last, some are
# beyond the limits (10, 16) that a few families set to gate and up, unless fp16 overflows before.
_GATE_SPREADS = (2.0, 6.0, 12.0, 24.0)
# What a module raises that wants more than one tensor.
_NOT_CALLED_SO = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def fuse_units(
    model: nn.Module, units: Sequence[tuple[LayerFacts, ...]], calls: Sequence[Call]
) -> dict[str, Fused]:
    """Fuse what can be: MLPs that gate with SiLU as a whole, other layers of one input by product.

    Whether an MLP is down(silu(gate(x)) * up(x)) is found by running it, not by its name: on
    random inputs that spread the gate, where other activations differ and limits to its values
    show. Whatever gives other results, by more than rounding, or no finite ones is left alone.

    Args:
        model: changed in place, in the final form of its layers.
        units: layers that may be multiplied together.
        calls: of a probe of the model as it was before.

    Returns:
        by name of each layer that is fused now, the way: `silu_and_mul` or `side by side`.
    """
    inputs = {call.name: call.x for call in calls}
    fused: dict[str, Fused] = {}
    called = [call.name for call in calls]
    for name, first, down in gated_mlp_candidates(model, units, called):
        if _fuse_mlp(model, name, first, down, inputs[f"{name}.{first[0]}"]):
            for child in first:
                fused[f"{name}.{child}"] = "silu_and_mul"
    for unit in units:
        names = [layer.name for layer in unit]
        if len(unit) == 1 or names[0] in fused or why_not_fused(model, names):
            continue
        if _fuse_unit(model, names, inputs[names[0]]):
            for layer_name in names:
                fused[layer_name] = "side by side"
    return fused


def _fuse_mlp(
    model: nn.Module, name: str, first: tuple[str, ...], down: str, example: Tensor
) -> bool:
    mlp = model.get_submodule(name)
    names = [f"{name}.{child}" for child in first]
    if has_hooks(mlp) or why_not_fused(model, names, SILU):
        return False
    inputs = _spreading_inputs(mlp.get_submodule(first[0]), example)
    try:
        with torch.no_grad():
            expected = [mlp(x) for x in inputs]
    except _NOT_CALLED_SO:
        return False
    if not all(isinstance(output, Tensor) for output in expected):
        return False
    tried = [(x, y) for x, y in zip(inputs, expected, strict=True) if bool(y.isfinite().all())]
    for order in _orders(first):
        fused = GatedMlp(mlp, order, down)
        with torch.no_grad():
            same = [nearly_equal(fused(x), output) for x, output in tried]
        if same and all(same):
            fuse_gated_mlp(model, name, fused)
            return True
    return False


def _orders(first: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield first
    if len(first) == 2:
        yield first[::-1]


@torch.no_grad()
def _spreading_inputs(gate: nn.Module, example: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(example.shape, generator=generator).to(example)
    spread = float(gate(x).float().std())
    return [x * (wanted / spread) for wanted in _GATE_SPREADS] if spread > 0 else [x]


@torch.no_grad()
def _fuse_unit(model: nn.Module, names: Sequence[str], x: Tensor) -> bool:
    layers = [model.get_submodule(name) for name in names]
    together = SideBySide(layers)
    found = [together.columns(index, x) for index in range(len(layers))]
    expected = [layer(x) for layer in layers]
    if not all(nearly_equal(left, right) for left, right in zip(found, expected, strict=True)):
        return False
    fuse_side_by_side(model, names, together)
    return True
