"""What a model built afresh from the edited configuration is: the proof that a reload will agree.

Both the old and the edited configuration are built without memory (on the meta device) and their
blocks compared, so that rules which only the model's code knows (a last block with a bias, an
attention scale by depth, shared keys and values) cannot go wrong in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.initialization import no_init_weights

from secateur.errors import SecateurError
from secateur.models.blocks import INDEX_NAMES, BlockList

Plain: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class Adopted:
    """A module attribute that depends on the place of its block."""

    block: int
    """New index."""
    module: str
    """Name within the block; empty for the block itself."""
    name: str
    before: Plain
    after: Plain

    @property
    def full_name(self) -> str:
        """Dotted name within the block."""
        return f"{self.module}.{self.name}" if self.module else self.name


def attributes_to_adopt(
    model: nn.Module, config: object, blocks: BlockList, kept: Sequence[int]
) -> list[Adopted] | None:
    """Compare what `model.config` builds with what the edited `config` builds.

    Args:
        model: its class is built; its weights are not looked at.
        config: the edited configuration of the whole model.
        blocks: the model's blocks as they are.
        kept: old indices of the blocks that stay, ascending.

    Returns:
        Indices and scale factors that the kept blocks must take over; None where the
        configuration cannot be rebuilt, so that nothing can be compared.

    Raises:
        SecateurError: the edited configuration cannot be built, or builds other blocks.
    """
    if not callable(getattr(config, "from_dict", None)):
        return None
    before = _built(model, model.config)
    after = _built(model, config)
    _check_outside(before, after, blocks.name)
    old, new = before.get_submodule(blocks.name), after.get_submodule(blocks.name)
    assert isinstance(old, nn.ModuleList)
    assert isinstance(new, nn.ModuleList)
    if len(new) != len(kept):
        raise SecateurError(
            f"expected the edited configuration to build {len(kept)} blocks, it builds {len(new)}"
        )
    return [
        adopted
        for place, index in enumerate(kept)
        for adopted in _differences(old[index], new[place], index, place)
    ]


def _built(model: nn.Module, config: Any) -> nn.Module:
    try:
        reloaded = type(config).from_dict(config.to_dict())
        # A model's own code may draw random weights even where none are stored.
        with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
            built = type(model)(reloaded)
    except Exception as error:  # whatever the model's code raises, a reload would raise it too
        raise SecateurError(
            f"{type(model).__name__} cannot be built from its configuration: {error}"
        ) from error
    return built


def _check_outside(before: nn.Module, after: nn.Module, blocks_name: str) -> None:
    old, new = (_shapes(model, leave_out=f"{blocks_name}.") for model in (before, after))
    differing = _differing(old, new)
    if differing:
        raise SecateurError(
            "expected only the blocks to depend on how many there are; outside them these weights "
            f"do too: {', '.join(differing)}"
        )


def _shapes(module: nn.Module, leave_out: str = "\n") -> dict[str, torch.Size]:
    return {
        name: tensor.shape
        for name, tensor in module.state_dict().items()
        if not name.startswith(leave_out)
    }


def _differing(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _differences(old: nn.Module, new: nn.Module, index: int, place: int) -> list[Adopted]:
    _check_structure(old, new, index, place)
    found = [
        Adopted(place, name, attribute, value, vars(twin).get(attribute))
        for (name, module), twin in zip(old.named_modules(), new.modules(), strict=True)
        for attribute, value in _plain_attributes(module).items()
        if not _same(value, vars(twin).get(attribute))
    ]
    for item in found:
        if not (item.name in INDEX_NAMES or isinstance(item.after, float)):
            raise SecateurError(
                f"block {index} would be block {place}, and there the model's code makes "
                f"{item.full_name} {item.after} instead of {item.before}"
            )
    return found


def _check_structure(old: nn.Module, new: nn.Module, index: int, place: int) -> None:
    weights = _differing(_shapes(old), _shapes(new))
    classes = _differing(_classes(old), _classes(new))
    if weights or classes:
        raise SecateurError(
            f"block {index} would be block {place}, and there the model's code adds, removes or "
            f"changes {', '.join(weights or classes)}"
        )


def _classes(module: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(child) for name, child in module.named_modules()}


def _plain_attributes(module: nn.Module) -> dict[str, Plain]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, (bool, int, float, str, type(None)))
    }


def _same(left: Plain, right: object) -> bool:
    return type(left) is type(right) and left == right
