"""A model of which only the first blocks are there, while the rest wait to be added."""

import copy
from typing import Any

from torch import nn

from secateur.depth.drop import drop_blocks
from secateur.depth.rules import COUNTS
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks, text_config


class FirstBlocks:
    """Sets how many of a model's blocks are there, first ones first, with its configuration.

    Blocks are the same modules throughout: what was trained in one round is there in the next.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin with all blocks."""
        self._model = model
        self._blocks = find_blocks(model)
        self._modules = tuple(self._blocks.modules)
        config = text_config(model)
        self._fields = copy.deepcopy(vars(config))
        self._counts = [
            (module, name, vars(module)[name])
            for module in self._holders()
            for name in COUNTS
            if vars(module).get(name) == len(self._modules)
        ]

    def __len__(self) -> int:
        """How many blocks there are in all."""
        return len(self._modules)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All blocks, those that are not in the model included."""
        return self._modules

    def keep(self, count: int) -> tuple[str, ...]:
        """Leave the first `count` blocks in the model.

        Returns:
            what a user should know, a sentence each.

        Raises:
            SecateurError: there are not as many, or the configuration cannot say so; the model then
                has all its blocks.
        """
        if not 1 <= count <= len(self):
            raise SecateurError(f"expected between 1 and {len(self)} blocks, got {count}")
        self.restore()
        return drop_blocks(self._model, self._all(), range(count, len(self))).warnings

    def restore(self) -> None:
        """All blocks again."""
        config = text_config(self._model)
        vars(config).clear()
        vars(config).update(copy.deepcopy(self._fields))
        for module, name, value in self._counts:
            _set(module, name, value)
        blocks = self._all()
        parent, _, child = blocks.name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, blocks.modules)

    def _all(self) -> BlockList:
        modules = nn.ModuleList(self._modules)
        modules.training = self._blocks.modules.training
        return BlockList(self._blocks.name, modules)

    def _holders(self) -> list[Any]:
        """Whatever around the list may count the blocks for itself."""
        path = self._blocks.name.split(".")[:-1]
        around = [self._model.get_submodule(".".join(path[:end])) for end in range(len(path) + 1)]
        whole = getattr(self._model, "config", None)
        return [*around, *([whole] if whole is not text_config(self._model) else [])]


def _set(module: Any, name: str, value: Any) -> None:
    if isinstance(module, nn.Module):
        setattr(module, name, value)
    else:
        vars(module)[name] = value
