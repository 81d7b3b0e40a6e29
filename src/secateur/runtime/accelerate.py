"""`secateur.accelerate`: compressed layers where they are faster, fused where they share inputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.models.fuse import require_unfused
from secateur.models.swap import CompressedLinear
from secateur.modules import Sparse24Linear
from secateur.modules.gated_mlp import GatedMlp
from secateur.modules.side_by_side import OneOfSeveral
from secateur.modules.weight24 import Weight24Module
from secateur.runtime.acceleration import Acceleration, Fused, LayerRow
from secateur.runtime.changes import Changes
from secateur.runtime.fuse import fuse_units
from secateur.runtime.layers import (
    LayerFacts,
    bytes_of,
    facts_of,
    linear_layers,
    problem_of,
)
from secateur.runtime.probe import Call, groups_of, record_calls, run_probe
from secateur.runtime.units import units_of
from secateur.runtime.verdict import NO_CLAIM, Circumstances, Verdict, judge
from secateur_kernels.dispatch import Policy, Table, choose
from secateur_kernels.dispatch.decide import measured_times
from secateur_kernels.dispatch.problem import device_facts

_DENSE_KERNEL = "dense: torch's product"
_ONLY_CALLED = "its layers were replaced, and one may be needed for its weight, not called"
_CANONICAL_KERNEL = "reference: expanded at each call, as for training"


def accelerate(
    model: nn.Module,
    *,
    policy: Policy = "memory",
    batch_sizes: Sequence[int] = (1,),
    table: Table | None = None,
    fuse: bool = True,
    force: bool = False,
) -> Acceleration:
    """Run a model's linear layers in the form in which they are fastest, as measured.

    Dense layers that are exactly 2:4 and layers of compact checkpoints become, or stay, packed 2:4
    layers, factors or both where the measured times say that this is faster than dense on the
    model's device; the rest is dense. Layers of one input (q/k/v, gate/up) are multiplied
    together, found by running the model on a few tokens and accepted where results are the same.
    On a CPU nothing is claimed to be faster: layers stay as they are unless forced, or measured.

    Args:
        model: a transformers model in evaluation mode on one device; changed in place. Its state
            dict has other names while layers are fused, and saving it is then refused.
        policy: `memory`: one copy of each weight, packed layers stay packed. `strict`: where dense
            was measured to be faster the weight is dense, or kept dense as well.
        batch_sizes: numbers of tokens in one call that matter; each counts the same.
        table: measured times to decide by; by default those that the ops themselves use.
        fuse: whether layers are multiplied together.
        force: pack and fuse all that can be, also on a CPU and where dense is faster.

    Returns:
        what was done, layer by layer; its `undo` makes the model what it was.

    Raises:
        SecateurError: an argument or the model does not fit; the model was changed back.
    """
    _check(model, policy, batch_sizes)
    facts = device_facts(_device_of(model))
    times = measured_times(facts) if table is None else table
    now = Circumstances(facts, times, policy, tuple(batch_sizes), force)
    active = force or facts.is_gpu
    layers = linear_layers(model)
    calls = record_calls(model, layers) if fuse and active else []
    plan = _plan(layers, calls, now)
    changes = Changes(model)
    try:
        fused = _apply(plan, changes, calls, active)
    except Exception:
        changes.undo()
        raise
    rows = tuple(row for unit in plan for row in _rows(model, unit, fused, now))
    note = "" if facts.is_gpu or times is not None else NO_CLAIM
    return Acceleration(rows, facts.name, policy, note, changes.undo)


def _check(model: nn.Module, policy: str, batch_sizes: Sequence[int]) -> None:
    if policy not in get_args(Policy):
        raise SecateurError(f"expected policy {' or '.join(get_args(Policy))}, got {policy!r}")
    if not batch_sizes or any(type(m) is not int or m < 1 for m in batch_sizes):
        raise SecateurError(f"expected batch sizes of at least 1, got {list(batch_sizes)}")
    if model.training:
        raise SecateurError("expected a model in evaluation mode: call model.eval() first")
    require_unfused(model, "to accelerate")


def _device_of(model: nn.Module) -> torch.device:
    found = {tensor.device for tensor in model.parameters()}
    if len(found) != 1 or found == {torch.device("meta")}:
        names = ", ".join(sorted(map(str, found))) or "none"
        raise SecateurError(f"expected a model on one device, got one on {names}")
    return found.pop()


@dataclass(frozen=True)
class _Planned:
    """Layers that are decided on together."""

    layers: tuple[LayerFacts, ...]
    verdict: Verdict

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    @property
    def is_to_be_packed(self) -> bool:
        return self.layers[0].form == "dense" and self.verdict.form == "2:4"

    @property
    def is_to_be_dense(self) -> bool:
        return self.layers[0].form != "dense" and self.verdict.form == "dense"


def _names(units: Iterable[_Planned]) -> list[str]:
    return [name for unit in units for name in unit.names]


def _plan(
    layers: Mapping[str, nn.Module], calls: Sequence[Call], now: Circumstances
) -> list[_Planned]:
    facts = {name: facts_of(name, module) for name, module in layers.items()}
    return [_Planned(unit, judge(unit, now)) for unit in units_of(facts, groups_of(calls))]


def _apply(
    plan: Sequence[_Planned], changes: Changes, calls: Sequence[Call], active: bool
) -> dict[str, Fused]:
    """Change forms, then fuse; by name of each fused layer, how."""
    if active:
        changes.pack_compressed()
    changes.pack(_names(unit for unit in plan if unit.is_to_be_packed))
    changes.make_dense(_names(unit for unit in plan if unit.is_to_be_dense))
    fused: dict[str, Fused] = {}
    if calls:
        fused = fuse_units(changes.model, [unit.layers for unit in plan], calls)
    for unit in plan:
        if unit.verdict.dense_copy:
            for product in _products(changes.model, unit.names):
                changes.keep_dense_copy(product)
    if calls:
        run_probe(changes.model, _ONLY_CALLED)
    return fused


def _products(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """What multiplies for the layers of a unit: one module if they are fused, else one each."""
    parent_name, _, child = names[0].rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, GatedMlp):
        return [parent.gate_up if child in parent.names[:-1] else parent.down]
    first = model.get_submodule(names[0])
    if isinstance(first, OneOfSeveral):
        return [first.shared.product]
    return [model.get_submodule(name) for name in names]


def _rows(
    model: nn.Module, unit: _Planned, fused: Mapping[str, Fused], now: Circumstances
) -> list[LayerRow]:
    products = _products(model, unit.names)
    groups = [unit.layers] if len(products) == 1 else [(layer,) for layer in unit.layers]
    return [
        _row(layers, product, fused.get(layers[0].name, ""), unit.verdict.reason, now)
        for layers, product in zip(groups, products, strict=True)
    ]


def _row(
    layers: tuple[LayerFacts, ...],
    product: nn.Module,
    fused: Fused,
    reason: str,
    now: Circumstances,
) -> LayerRow:
    is_compressed = isinstance(product, CompressedLinear)
    facts = facts_of(layers[0].name, product) if is_compressed else None
    return LayerRow(
        names=tuple(layer.name for layer in layers),
        shape=(sum(layer.shape[0] for layer in layers), layers[0].shape[1]),
        form=facts.form if facts else "dense",
        fused=fused,
        kernels=tuple((m, _kernel(product, facts, m, now)) for m in now.tokens),
        reason=reason,
        bytes_before=sum(layer.num_bytes for layer in layers),
        bytes_after=bytes_of([product]),
    )


def _kernel(product: nn.Module, facts: LayerFacts | None, m: int, now: Circumstances) -> str:
    if facts is None:
        return _DENSE_KERNEL
    if isinstance(product, Weight24Module) and not product.is_packed:
        return _CANONICAL_KERNEL
    has_copy = isinstance(product, Sparse24Linear) and product.dense is not None
    choice = choose(problem_of([facts], facts.form, m, now.device, has_copy), now.table)
    return choice.backend if choice.config is None else f"{choice.backend} with {choice.config}"
