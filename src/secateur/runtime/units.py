"""Which layers of a model are decided on and fused together."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from torch import nn

from secateur.runtime.layers import LayerFacts


def units_of(
    facts: Mapping[str, LayerFacts], groups: Iterable[Sequence[str]]
) -> list[tuple[LayerFacts, ...]]:
    """Layers that are multiplied together, and each of the others alone.

    Args:
        facts: of all layers, in the order of the model.
        groups: names of layers of one input, in the order of their calls.

    Returns:
        units of one form and dtype each, in the order of the model.
    """
    unit_of: dict[str, tuple[LayerFacts, ...]] = {}
    for group in groups:
        layers = sorted((facts[name] for name in group), key=_kind)
        for _, alike in groupby(layers, key=_kind):
            unit = tuple(alike)
            unit_of.update({layer.name: unit for layer in unit})
    units: dict[str, tuple[LayerFacts, ...]] = {}
    for name, layer in facts.items():
        unit = unit_of.get(name, (layer,))
        units.setdefault(unit[0].name, unit)
    return list(units.values())


def _kind(layer: LayerFacts) -> tuple[str, ...]:
    """What the layers of a unit have in common; sorting by it keeps the order of calls."""
    return layer.form, str(layer.could_be_24), str(layer.dtype), str(layer.shape[1])


def gated_mlp_candidates(
    model: nn.Module, units: Iterable[Sequence[LayerFacts]], called: Sequence[str]
) -> list[tuple[str, tuple[str, ...], str]]:
    """Modules that could be down(silu(gate(x)) * up(x)), by the shapes of their layers.

    Args:
        model: the model.
        units: layers that may be fused.
        called: names of layers in the order of their calls, each called once.

    Returns:
        name of the module, names of gate and up or of the one layer with both in the order of
        calls, and name of the last layer, the latter two relative to the module.
    """
    by_parent: dict[str, list[str]] = {}
    for name in called:
        parent, _, child = name.rpartition(".")
        by_parent.setdefault(parent, []).append(child)
    shapes = {layer.name: layer.shape for unit in units for layer in unit}
    together = {frozenset(layer.name for layer in unit) for unit in units}
    found = []
    for parent, children in by_parent.items():
        *first, down = children
        names = [f"{parent}.{child}" for child in first]
        if frozenset(names) not in together or not _holds_nothing_else(model, parent, children):
            continue
        if f"{parent}.{down}" not in shapes or not 1 <= len(first) <= 2:
            continue
        rows = sum(shapes[name][0] for name in names)
        if rows == 2 * shapes[f"{parent}.{down}"][1]:
            found.append((parent, tuple(first), down))
    return found


def _holds_nothing_else(model: nn.Module, name: str, children: Sequence[str]) -> bool:
    """Whether all that a module knows by heart is in these children."""
    module = model.get_submodule(name)
    inside = {f"{child}." for child in children}
    names = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    return all(any(n.startswith(child) for child in inside) for n in names)
