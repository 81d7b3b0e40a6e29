"""Times of every choice in a model: layers alone, brought to scale by the whole model.

Each distinct layer is timed by itself in all forms. The whole model is timed dense, without its
blocks of one kind, without their attention and their MLP, and with factors of a middle rank in all
layers; what these save tells what a block takes beside its matrices, and by how much layers inside
a model differ from layers alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from secateur.models.blocks import BlockList, text_config
from secateur.models.entering import OutputForms
from secateur.models.sites import WeightSite
from secateur.models.sublayers import Sublayers, silenced
from secateur.plan.layer_times import LayerKind, factored_layer, form_name, layer_milliseconds
from secateur.plan.options import fits_sparse24
from secateur.plan.skip import skipped
from secateur.plan.table import DENSE, Part
from secateur.plan.turns import Variant, milliseconds_in_turns, replaced
from secateur.plan.workload import Workload, workload_call
from secateur.progress import Progress

# Below this part of the dense time the scale of layers inside a model cannot be told from noise.
_LEAST_PROBE = 0.05
_SCALES = (0.5, 2.0)


@dataclass(frozen=True)
class Setup:
    """The model whose times are measured."""

    model: nn.Module
    blocks: BlockList
    forms: OutputForms
    sites: Sequence[WeightSite]
    """The units."""
    ranks: Mapping[str, Sequence[int]]
    """By unit."""
    with_sparse24: bool
    sublayers: Sequence[Sublayers]
    """By block; empty where parts of blocks do not go."""
    workload: Workload
    device: torch.device
    rounds: int


@dataclass(frozen=True)
class Times:
    """Milliseconds, in the model's own scale."""

    dense: float
    """The whole model."""
    forms: Mapping[str, Mapping[str, float]]
    """By unit, then by form."""
    parts: Mapping[tuple[int, Part], float]
    """By block and part: all that goes with it, its matrices included."""
    scale: float
    """What a layer takes inside the model over what it takes alone."""


def layer_kind(site: WeightSite) -> LayerKind:
    """Which layers take as long as this one."""
    return LayerKind(*site.shape, getattr(site.module, "bias", None) is not None)


def measure_times(setup: Setup, progress: Progress) -> Times:
    """Measure layers, then the whole model.

    Args:
        setup: the model on its device, in evaluation mode; left as it was.
        progress: told after each kind of layer.

    Raises:
        SecateurError: the model cannot do the workload.
    """
    alone = _layers_alone(setup, progress)
    groups = _alike_blocks(setup)
    variants, counts = _variants(setup, groups)
    progress.begin("time of the whole model", 1)
    whole = milliseconds_in_turns(variants, setup.device, setup.rounds)
    progress.advance(f"{whole[DENSE]:.3g} ms")
    scale = _scale(setup, alone, whole)
    forms = {
        name: {form: scale * time for form, time in found.items()} for name, found in alone.items()
    }
    return Times(whole[DENSE], forms, _part_times(groups, counts, whole), scale)


def _layers_alone(setup: Setup, progress: Progress) -> dict[str, dict[str, float]]:
    by_kind: dict[LayerKind, list[WeightSite]] = {}
    for site in setup.sites:
        by_kind.setdefault(layer_kind(site), []).append(site)
    progress.begin("time of each layer", len(by_kind))
    found: dict[str, dict[str, float]] = {}
    for kind, sites in by_kind.items():
        times = layer_milliseconds(
            kind,
            setup.ranks[sites[0].name],
            setup.with_sparse24 and fits_sparse24((kind.rows, kind.columns)),
            len(sites),
            setup.workload.tokens,
            sites[0].parameter.dtype,
            setup.device,
            setup.rounds,
        )
        found |= {site.name: times for site in sites}
        progress.advance(f"{kind.rows} x {kind.columns}")
    return found


def _alike_blocks(setup: Setup) -> list[list[int]]:
    """Blocks that take the same time: same layers, same kind of attention."""
    kinds = getattr(text_config(setup.model), "layer_types", None)
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, block in enumerate(setup.blocks.modules):
        shapes = tuple(tuple(p.shape) for p in block.parameters())
        groups.setdefault((kinds[index] if kinds else None, shapes), []).append(index)
    return list(groups.values())


def _variants(
    setup: Setup, groups: Sequence[Sequence[int]]
) -> tuple[dict[str, Variant], dict[str, int]]:
    """Whole-model variants by name, and how many blocks each is without."""
    call = workload_call(setup.model, setup.workload)
    variants = {DENSE: Variant(call, nullcontext), "probe": Variant(call, _Probe(setup))}
    counts: dict[str, int] = {}
    for number, group in enumerate(groups):
        # Block 0 holds the count of tokens that some models go by.
        blocks = [index for index in group if index > 0] or list(group)
        for part in _parts(setup):
            name = f"{part} {number}"
            variants[name] = Variant(call, _Without(setup, blocks, part))
            counts[name] = len(blocks)
    return variants, counts


def _parts(setup: Setup) -> tuple[Part, ...]:
    return ("block", "attention", "mlp") if setup.sublayers else ("block",)


@dataclass(frozen=True)
class _Without:
    """Enters the model without some blocks, or without a part of them."""

    setup: Setup
    blocks: Sequence[int]
    part: Part

    def __call__(self) -> AbstractContextManager[None]:
        stack = ExitStack()
        for index in self.blocks:
            block = self.setup.blocks.modules[index]
            if self.part == "block":
                stack.enter_context(skipped(block, self.setup.forms[index]))
            else:
                half = self.setup.sublayers[index].part(self.part)
                stack.enter_context(silenced(block, half))
        return stack  # type: ignore[return-value]


class _Probe:
    """Enters the model with factors of each unit's middle rank."""

    def __init__(self, setup: Setup) -> None:
        self._model = setup.model
        self._layers: dict[str, nn.Module] = {}
        for site in setup.sites:
            rank = _middle_rank(setup, site)
            if rank is not None:
                self._layers[site.name] = factored_layer(
                    layer_kind(site), rank, site.parameter.dtype, setup.device
                )

    def __call__(self) -> AbstractContextManager[None]:
        return replaced(self._model, self._layers)


def _middle_rank(setup: Setup, site: WeightSite) -> int | None:
    ranks = setup.ranks[site.name]
    return ranks[len(ranks) // 2] if ranks else None


def _scale(
    setup: Setup, alone: Mapping[str, Mapping[str, float]], whole: Mapping[str, float]
) -> float:
    """What factors save in the model over what they save alone; 1 where that is too little."""
    saved_alone = 0.0
    for site in setup.sites:
        rank = _middle_rank(setup, site)
        if rank is not None:
            times = alone[site.name]
            saved_alone += times[DENSE] - times[form_name(rank)]
    saved = whole[DENSE] - whole["probe"]
    if min(saved, saved_alone) < _LEAST_PROBE * whole[DENSE]:
        return 1.0
    return min(max(saved / saved_alone, _SCALES[0]), _SCALES[1])


def _part_times(
    groups: Sequence[Sequence[int]], counts: Mapping[str, int], whole: Mapping[str, float]
) -> dict[tuple[int, Part], float]:
    parts: dict[tuple[int, Part], float] = {}
    for number, group in enumerate(groups):
        for part in ("block", "attention", "mlp"):
            name = f"{part} {number}"
            if name in counts:
                each = (whole[DENSE] - whole[name]) / counts[name]
                parts |= {(index, part): each for index in group}
    return parts
