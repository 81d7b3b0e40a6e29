"""The compressed layers of a checkpoint, as its `quantization_config` lists them.

```
{"quant_method": "secateur", "format_version": 1,
 "layers": [{"kind": "sparse24", "bias": false, "modules": ["model.layers.0.mlp.up_proj", ...]},
            {"kind": "low_rank", "rank": 64, "bias": false, "modules": [...]}],
 "shared_down": {"model.layers.0.self_attn.k_proj": "model.layers.0.self_attn.q_proj"},
 "removed": [{"width": 256, "tuple_length": 2, "modules": ["model.layers.5.self_attn", ...]}]}
```

Layers of one kind stand together, every one by its name: no pattern that could match too much.
Tensors are named after the layer: `weight` [N, K / 2], the kept values, and `indices` uint8 of 2:4;
`down`, `up` of factors; `bias`. Shapes follow from the model's own configuration. `removed` names
attentions and MLPs that are not there: see `removed_specs.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.integrations.removed_specs import RemovedParts
from secateur.models.fuse import require_unfused
from secateur.models.swap import (
    CompressedLinear,
    compressed_modules,
    linear_shape,
    replace_module,
)
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.weight24 import Weight24Module
from secateur.plain import from_plain, to_plain

QUANT_METHOD = "secateur"
FORMAT_VERSION = 1

Kind = Literal["sparse24", "low_rank", "sparse24_low_rank"]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What has to be known of a compressed layer before its tensors are read."""

    kind: Kind
    bias: bool
    rank: int | None = None
    """Of each group, padding included; None without factors."""
    group_rows: tuple[int, ...] | None = None
    """Rows of each group where there are several: each has rows of `down` of its own."""

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.kind == "sparse24"):
            raise SecateurError(f"expected a rank if and only if there are factors ({self.kind})")
        if self.rank is not None and self.rank < 1:
            raise SecateurError(f"expected a rank of at least 1, got {self.rank}")
        if self.group_rows is not None and self.rank is None:
            raise SecateurError("expected group_rows with factors only")

    @classmethod
    def of(cls, module: CompressedLinear) -> "LayerSpec":
        """What describes a layer."""
        bias = module.bias is not None
        if isinstance(module, Sparse24Linear):
            return cls(kind="sparse24", bias=bias)
        return cls(
            kind="low_rank" if isinstance(module, LowRankLinear) else "sparse24_low_rank",
            bias=bias,
            rank=module.rank,
            group_rows=tuple(module.group_rows) if len(module.group_rows) > 1 else None,
        )

    def build(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        shares_down_with: LowRankLinear | None = None,
    ) -> CompressedLinear:
        """The layer without values, on the meta device.

        Args:
            shape: (N, K).
            dtype: of values, factors and bias.
            shares_down_with: the layer that holds its `down`.

        Raises:
            SecateurError: the shape does not fit.
        """
        rows, columns = shape
        options: dict[str, Any] = {"dtype": dtype, "device": "meta"}
        if self.rank is None:
            return Sparse24Linear(columns, rows, self.bias, **options)
        group_rows = self.group_rows or (rows,)
        if sum(group_rows) != rows or min(group_rows) < 1:
            raise SecateurError(f"expected group_rows that add up to {rows}, got {group_rows}")
        if self.kind == "sparse24_low_rank":
            return SparseLowRankLinear(
                columns, rows, self.rank, self.bias, group_rows=group_rows, **options
            )
        return LowRankLinear(
            columns,
            rows,
            self.rank,
            self.bias,
            group_rows=group_rows,
            shares_down_with=shares_down_with,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class _LayerGroup(LayerSpec):
    """Layers of one spec, by name."""

    modules: tuple[str, ...]


@dataclass(frozen=True)
class CompactLayers:
    """All compressed layers of a model."""

    specs: Mapping[str, LayerSpec]
    """By dotted name."""
    shared_down: Mapping[str, str] = field(default_factory=dict)
    """Low-rank layer -> the layer that holds its `down`."""
    removed: RemovedParts = field(default_factory=RemovedParts)
    """Attentions and MLPs that are not there."""

    @property
    def names(self) -> list[str]:
        """Of all layers, and of what was removed."""
        return [*self.specs, *self.removed.specs]

    def __post_init__(self) -> None:
        for name in self.specs:
            if self.removed.holds(name):
                raise SecateurError(f"{name} is listed as a layer, but was removed")
        for name, leader in self.shared_down.items():
            kinds = [getattr(self.specs.get(layer), "kind", None) for layer in (name, leader)]
            if kinds != ["low_rank", "low_rank"] or leader in self.shared_down or name == leader:
                raise SecateurError(
                    f"shared_down: expected two low-rank layers, of which the second has a down of "
                    f"its own, got {name} and {leader}"
                )

    @classmethod
    def of(cls, model: nn.Module) -> "CompactLayers":
        """The layers that a model holds.

        Raises:
            SecateurError: a layer cannot be saved as it is; names it.
        """
        require_unfused(model, "to save")
        modules = compressed_modules(model)
        tied = _tied_tensors(model)
        for name, module in modules.items():
            if module.activation != "none":
                raise SecateurError(
                    f"{name} multiplies gate and up in one layer, which no checkpoint can say: "
                    "save the model before its layers are fused"
                )
            if f"{name}.weight" in tied:
                raise SecateurError(
                    f"{name}.weight is tied to another weight by the model's configuration, but "
                    f"{name} is compressed"
                )
        return cls(
            {name: LayerSpec.of(module) for name, module in modules.items()},
            _shared_down(modules),
            RemovedParts.of(model),
        )

    def within(self, part: str) -> "CompactLayers":
        """The layers of a part of the model, such as a block, by its dotted name."""
        start = f"{part}."
        return CompactLayers(
            {name: spec for name, spec in self.specs.items() if name.startswith(start)},
            {name: held for name, held in self.shared_down.items() if name.startswith(start)},
        )

    @classmethod
    def from_plain(
        cls, layers: object, shared_down: object = None, removed: object = None
    ) -> "CompactLayers":
        """Read what a configuration says.

        Raises:
            SecateurError: it is none that Secateur writes; names the place.
        """
        gone = RemovedParts() if removed is None else RemovedParts.from_plain(removed)
        if layers is None and gone.specs:
            layers = ()
        elif not isinstance(layers, list | tuple) or not layers:
            raise SecateurError(f"layers: expected a list of compressed layers, got {layers!r}")
        specs: dict[str, LayerSpec] = {}
        for index, item in enumerate(layers):
            group = from_plain(_LayerGroup, item, f"layers.{index}")
            values = {name: getattr(group, name) for name in LayerSpec.__dataclass_fields__}
            for name in group.modules:
                if name in specs:
                    raise SecateurError(f"layers.{index}: {name} is listed twice")
                specs[name] = LayerSpec(**values)
        return cls(specs, _read_shared_down(shared_down), gone)

    def to_plain(self) -> dict[str, Any]:
        """The keys `layers`, `shared_down` and `removed`, as far as there are any."""
        groups: dict[LayerSpec, list[str]] = {}
        for name, spec in self.specs.items():
            groups.setdefault(spec, []).append(name)
        plain: dict[str, Any] = {}
        if groups:
            plain["layers"] = [
                {**_without_none(to_plain(spec)), "modules": names}
                for spec, names in groups.items()
            ]
        if self.shared_down:
            plain["shared_down"] = dict(self.shared_down)
        if self.removed.specs:
            plain["removed"] = self.removed.to_plain()
        return plain

    def renamed_for(self, model: nn.Module) -> "CompactLayers":
        """The same layers as `model` calls them: with a prefix more or less than in the checkpoint.

        A causal language model holds its base model under a prefix such as `model`.

        Raises:
            SecateurError: a layer is not in the model.
        """
        names = {name for name, _ in model.named_modules()}
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        there: dict[str, str] = {}
        for name in self.names:
            forms = (name, name.removeprefix(prefix), prefix + name)
            found = next((form for form in forms if form in names), None)
            if found is None:
                raise SecateurError(
                    f"the configuration lists {_kind_of(name, self)} {name}, which "
                    f"{type(model).__name__} does not have"
                )
            there[name] = found
        return replace(
            self,
            specs={there[name]: spec for name, spec in self.specs.items()},
            shared_down={there[name]: there[other] for name, other in self.shared_down.items()},
            removed=self.removed.renamed(there),
        )

    def build_in(self, model: nn.Module) -> None:
        """Put the layers, without values, into a model on the meta device.

        Raises:
            SecateurError: a layer is not in the model, is not linear or has another shape.
        """
        self.removed.build_in(model)
        leaders_first = sorted(self.specs, key=lambda name: name in self.shared_down)
        built: dict[str, CompressedLinear] = {}
        for name in leaders_first:
            old = model.get_submodule(name)
            shape = linear_shape(old)
            if shape is None:
                raise SecateurError(
                    f"expected a linear layer at {name}, found {type(old).__name__}"
                )
            leader = built.get(self.shared_down.get(name, ""))
            assert leader is None or isinstance(leader, LowRankLinear)
            try:
                built[name] = self.specs[name].build(shape, _dtype_of(old), leader)
            except SecateurError as error:
                raise SecateurError(f"{name} {list(shape)}: {error}") from None
            replace_module(model, name, built[name])


def _kind_of(name: str, layers: CompactLayers) -> str:
    return "the compressed layer" if name in layers.specs else "the removed part"


@dataclass(frozen=True)
class _SharedDown:
    shared_down: dict[str, str]


def _read_shared_down(value: object) -> dict[str, str]:
    return from_plain(_SharedDown, {"shared_down": value or {}}).shared_down


def _dtype_of(module: nn.Module) -> torch.dtype:
    if isinstance(module, Weight24Module):
        # Packed it may have no parameter.
        return module.value_dtype
    return next(parameter.dtype for parameter in module.parameters())


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _tied_tensors(model: nn.Module) -> set[str]:
    """Names of weights that transformers ties when it loads the model."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {*tied.keys(), *tied.values()}


def _shared_down(modules: Mapping[str, CompressedLinear]) -> dict[str, str]:
    holders = {
        id(module.down): name
        for name, module in modules.items()
        if isinstance(module, LowRankLinear) and not module.shares_down
    }
    shared = {}
    for name, module in modules.items():
        if isinstance(module, LowRankLinear) and module.shares_down:
            leader = holders.get(id(module.held_down()))
            if leader is None:
                raise SecateurError(
                    f"{name} shares the down of a layer that is not in the model: both go into one "
                    "checkpoint, or each needs a down of its own"
                )
            shared[name] = leader
    return shared
