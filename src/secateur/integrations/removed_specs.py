"""The attentions and MLPs that a checkpoint is without, as its `quantization_config` lists them.

What stands for them has to return what they returned, so that is said beside their names: the
width of the output, and the length of the tuple that it began, if it was one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.errors import SecateurError
from secateur.models.sublayers import cache_index, removed_sublayers
from secateur.modules.removed_sublayer import RemovedSublayer
from secateur.plain import from_plain

# Far more than any sub-layer returns. Checkpoints come from strangers, and a tuple takes memory.
_MOST_RETURNED = 16


@dataclass(frozen=True, kw_only=True)
class RemovedSpec:
    """What a removed part returned."""

    width: int
    tuple_length: int | None = None

    def __post_init__(self) -> None:
        # Says what is wrong with the numbers.
        RemovedSublayer(self.width, self.tuple_length)
        if self.tuple_length is not None and self.tuple_length > _MOST_RETURNED:
            raise SecateurError(
                f"expected a tuple length of at most {_MOST_RETURNED}, got {self.tuple_length}"
            )


@dataclass(frozen=True, kw_only=True)
class _RemovedGroup(RemovedSpec):
    """Parts of one spec, by name."""

    modules: tuple[str, ...]


@dataclass(frozen=True)
class RemovedParts:
    """All that was removed from the blocks of a model, where the blocks stayed."""

    specs: Mapping[str, RemovedSpec] = field(default_factory=dict)
    """By dotted name."""

    @classmethod
    def of(cls, model: nn.Module) -> "RemovedParts":
        """What a model is without."""
        return cls(
            {
                name: RemovedSpec(width=module.width, tuple_length=module.tuple_length)
                for name, module in removed_sublayers(model).items()
            }
        )

    @classmethod
    def from_plain(cls, removed: object) -> "RemovedParts":
        """Read the key `removed` of a configuration.

        Raises:
            SecateurError: it is none that Secateur writes; names the place.
        """
        if not isinstance(removed, list | tuple) or not removed:
            raise SecateurError(f"removed: expected a list of removed parts, got {removed!r}")
        specs: dict[str, RemovedSpec] = {}
        for index, item in enumerate(removed):
            try:
                group = from_plain(_RemovedGroup, item, f"removed.{index}")
            except SecateurError as error:
                where = "" if str(error).startswith("removed.") else f"removed.{index}: "
                raise SecateurError(f"{where}{error}") from None
            for name in group.modules:
                if name in specs:
                    raise SecateurError(f"removed.{index}: {name} is listed twice")
                specs[name] = RemovedSpec(width=group.width, tuple_length=group.tuple_length)
        return cls(specs)

    def to_plain(self) -> list[dict[str, Any]]:
        """The value of the key `removed`."""
        groups: dict[RemovedSpec, list[str]] = {}
        for name, spec in self.specs.items():
            groups.setdefault(spec, []).append(name)
        return [
            {
                "width": spec.width,
                **({} if spec.tuple_length is None else {"tuple_length": spec.tuple_length}),
                "modules": names,
            }
            for spec, names in groups.items()
        ]

    def renamed(self, names: Mapping[str, str]) -> "RemovedParts":
        """The same under other names, old -> new."""
        return RemovedParts({names[name]: spec for name, spec in self.specs.items()})

    def holds(self, name: str) -> bool:
        """Whether a module or tensor of this name lies in a removed part."""
        return any(name == gone or name.startswith(f"{gone}.") for gone in self.specs)

    def build_in(self, model: nn.Module) -> None:
        """Put stand-ins in the place of the parts, which are there, in a model.

        Raises:
            SecateurError: a part is not in the model, is no part of a block, or returned something
                of another width.
        """
        for name, spec in self.specs.items():
            parent_name, _, child = name.rpartition(".")
            try:
                old = model.get_submodule(name)
            except AttributeError:
                raise SecateurError(f"{type(model).__name__} has no {name} to remove") from None
            _check_part(model, name, old, spec)
            stand_in = RemovedSublayer(spec.width, spec.tuple_length, cache_index(old))
            setattr(model.get_submodule(parent_name), child, stand_in.train(old.training))


def _check_part(model: nn.Module, name: str, part: nn.Module, spec: RemovedSpec) -> None:
    """Refuse what no removal leaves behind: memory for its zeros would be anything."""
    block_name = name.rpartition(".")[0]
    blocks = model.get_submodule(block_name.rpartition(".")[0])
    if not block_name or not isinstance(blocks, nn.ModuleList):
        raise SecateurError(f"expected {name} to be the attention or MLP of a block")
    # The first of several layers of an MLP is stood for by zeros of width 1.
    widths = {1} | {size for parameter in part.parameters() for size in parameter.shape}
    if spec.width not in widths:
        raise SecateurError(
            f"{name} is listed as removed with a width of {spec.width}, which none of its weights "
            "has"
        )
